"""How often something is said at most."""

from __future__ import annotations

import time

PROGRESS_SECONDS = 5.0
"""Between two reports of a client that comes further. Rounds that are done sooner say nothing."""


class Pace:
    """Says when it is time again: first `seconds` after it was made. Asking costs 0.1 microseconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def is_time(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

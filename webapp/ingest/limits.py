"""How many log lines a job may write: a burst, then a steady rate. What is above is counted and said in the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.protocol import Logs

LINES_PER_SECOND = 1_000
BURST_LINES = 20_000
"""Room for what piled up while ingest was away."""
_MOST_BUDGETS = 10_000


class LineBudget:
    """A token bucket for each (attempt, source)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[tuple[int, str], tuple[float, float]] = {}

    def take(self, logs: Logs) -> Logs:
        """Return the entry with only the lines that the budget allows; the rest is added to its `dropped`."""
        now = self._clock()
        if len(self._left) >= _MOST_BUDGETS:  # full buckets are the same as no bucket
            self._left = {
                key: (left, at)
                for key, (left, at) in self._left.items()
                if left + (now - at) * LINES_PER_SECOND < BURST_LINES
            }
        key = (logs.attempt_id, logs.source)
        left, at = self._left.get(key, (float(BURST_LINES), now))
        left = min(BURST_LINES, left + (now - at) * LINES_PER_SECOND)
        allowed = min(len(logs.lines), int(left))
        self._left[key] = (left - allowed, now)
        if allowed == len(logs.lines):
            return logs
        dropped = logs.dropped + len(logs.lines) - allowed
        return logs.model_copy(update={"lines": logs.lines[:allowed], "dropped": dropped})

"""What waits to be sent to one browser. Bounded: a socket that cannot keep up loses frames, and is told so."""

from __future__ import annotations

import asyncio
import json
from collections import deque

from webapp.core.live import ResyncMessage

MAX_FRAMES = 256
MAX_CHARACTERS = 4_000_000

_RESYNC: ResyncMessage = {"type": "resync"}


class Outbox:
    """Texts for one socket, in order.

    The channel layer's queue for each socket has no bound, so it must be emptied at once, whatever the socket's speed.
    When the backlog is full all of it is thrown away for one `resync`: the page loads the truth over HTTP, once, which
    is less than what it was too slow to get.
    """

    def __init__(self) -> None:
        self._texts: deque[str] = deque()
        self._num_characters = 0
        self._filled = asyncio.Event()

    def put(self, text: str) -> None:
        """Add a text. Never waits."""
        if len(self._texts) >= MAX_FRAMES or self._num_characters + len(text) > MAX_CHARACTERS:
            self._texts.clear()
            self._num_characters = 0
            text = json.dumps(_RESYNC)
        self._texts.append(text)
        self._num_characters += len(text)
        self._filled.set()

    async def get(self) -> str:
        """Return the next text, waiting for one. For a single reader."""
        while not self._texts:
            self._filled.clear()
            await self._filled.wait()
        text = self._texts.popleft()
        self._num_characters -= len(text)
        return text

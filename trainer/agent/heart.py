"""Heartbeats: what this node is and runs, every few seconds, and at once when what it runs changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

from trainer.agent.facts import read_gpus
from trainer.agent.outbox import Outbox
from trainer.protocol import HEARTBEAT_SECONDS, Facts, Heartbeat, SourceBudget

LOAD_SECONDS = 1.0
"""The least time over which the CPU's load says something."""


class Heart:
    """`attempts` gives the ids to report, `budgets` what is spent; `beat_now` may be called from any thread."""

    def __init__(
        self,
        outbox: Outbox,
        boot_id: str,
        facts: Facts,
        attempts: Callable[[], list[int]],
        budgets: Callable[[], list[SourceBudget]],
    ) -> None:
        self._outbox = outbox
        self._boot_id = boot_id
        self._facts = facts
        self._attempts = attempts
        self._budgets = budgets
        self._changed = threading.Event()
        self._stopping = False
        self._cpu_percent = psutil.cpu_percent()
        self._loaded_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def beat_now(self) -> None:
        self._changed.set()

    def stop(self) -> None:
        """Send a last sign that says the node is going away."""
        self._stopping = True
        self._changed.set()
        self._thread.join()
        self._beat(going_away=True)

    def _run(self) -> None:
        while True:
            # Cleared before anything is read: a stop or a change from here on ends the wait at once.
            self._changed.clear()
            if self._stopping:
                return
            self._beat()
            self._changed.wait(HEARTBEAT_SECONDS)

    def _beat(self, *, going_away: bool = False) -> None:
        if time.monotonic() - self._loaded_at >= LOAD_SECONDS:
            self._cpu_percent = psutil.cpu_percent()
            self._loaded_at = time.monotonic()
            if self._facts.gpus:
                self._facts = self._facts.model_copy(update={"gpus": read_gpus()})
        self._outbox.put(
            Heartbeat(
                boot_id=self._boot_id,
                facts=self._facts.model_copy(update={"budgets": self._budgets()}),
                cpu_percent=self._cpu_percent,
                memory_used_bytes=psutil.virtual_memory().used,
                attempts=[] if going_away else self._attempts(),
                going_away=going_away,
            )
        )

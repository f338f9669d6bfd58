"""The loop of `manage.py ingest`: read a tick of all streams, store it, forget it in the broker, and again.

A tick starts at most every 50 ms, so that a busy fleet costs 20 commits a second and each job 20 frames, and at once
while there is a backlog. While no browser watches a job, curves and logs are held for a moment, and written four times
a second: on a machine that trains as well, each commit takes its time from the training. Nothing ends the loop but `stop`: without the broker or the database it waits and tries again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter

import redis
from django.db import connection
from django.db.utils import InterfaceError, OperationalError

from trainer.protocol import Logs, Points
from webapp.core.broker import broker
from webapp.core.live import is_watched
from webapp.ingest.entries import Entry
from webapp.ingest.store import EntryStore
from webapp.ingest.streams import StreamReader

logger = logging.getLogger(__name__)

ALIVE_KEY = "ingest:alive"
"""JSON {since, at, entries, points, bad_entries}: Unix seconds since when ingest drains without a pause, and now."""
TICK_SECONDS = 0.05
BLOCK_MS = 50
HOLD_SECONDS = 0.25
"""Pause between two commits of curves and logs that nobody watches. All else is stored at once."""
ALIVE_SECONDS = 1.0
"""Pause between two signs of life; new nodes are looked up at the same pace."""
PAUSE_SECONDS = 3.0
"""After a silence as long as this, draining counts from anew: no node is called dead for what ingest did not read."""
SLOW_TICK_SECONDS = 0.25
QUICK_TICK_SECONDS = 0.05
MOST_ENTRIES = 128
"""Entries of one stream in a tick. The loop halves it while ticks are slow, so that everybody's wait stays short."""
LONGEST_BACK_OFF_SECONDS = 5.0


class Ingest:
    """One ingest process."""

    def __init__(self) -> None:
        self.store = EntryStore()
        self._reader = StreamReader(broker())
        self._stopping = threading.Event()
        self._pending: list[Entry] = []
        """Read, and not yet committed."""
        self._is_storing = False
        """What is pending is being committed: nothing more is read until that has succeeded, however often it fails."""
        self._since = self._at = time.time()
        self._alive_due = self._hold_until = 0.0
        self._is_watched = False
        self._count = 16

    def stop(self) -> None:
        """Finish the present tick, then end. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Drain until `stop`."""
        back_off = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                has_more = self.tick()
            except (redis.RedisError, OperationalError, InterfaceError) as problem:
                if not back_off:
                    logger.warning("Ingest waits, because the broker or the database does not answer: %s", problem)
                back_off = min(LONGEST_BACK_OFF_SECONDS, 2 * back_off or 0.1)
                connection.close()  # a broken connection would fail for ever
                self._stopping.wait(back_off)
                continue
            if back_off:
                back_off = 0.0
                logger.warning("Ingest goes on.")
            if not has_more:
                self._stopping.wait(TICK_SECONDS - (time.monotonic() - started))

    def tick(self) -> bool:
        """Store what is there now. Return whether a stream may hold more.

        Raises RedisError, OperationalError or InterfaceError where the broker or the database does not answer; the
        next call then takes up where this one stopped.
        """
        is_due = time.monotonic() >= self._alive_due
        if is_due:
            self._reader.reload()
            self._is_watched = is_watched()
        has_more = False
        if not self._is_storing:
            raws = self._reader.read(count=self._count, block_ms=BLOCK_MS)
            has_more = max(Counter(raw.node_id for raw in raws).values(), default=0) >= self._count
            self._pending += self.store.parse(raws)
            self._is_storing = bool(self._pending) and (has_more or not self._may_hold())
        if self._is_storing:
            started = time.monotonic()
            self.store.store(self._pending)
            self._pace(time.monotonic() - started, has_more=has_more)
            done = {entry.node_id: entry.id for entry in self._pending}
            self._pending = []
            self._is_storing = False
            self._hold_until = time.monotonic() + HOLD_SECONDS
            self._reader.forget(done)
        self._note_time()
        if is_due:
            self._say_alive()
        return has_more

    def _may_hold(self) -> bool:
        """Whether all that waits are curves and logs that nobody watches, and that have not waited for long."""
        if self._is_watched or self._stopping.is_set() or time.monotonic() >= self._hold_until:
            return False
        return all(isinstance(entry.message, Points | Logs) for entry in self._pending)

    def _pace(self, seconds: float, *, has_more: bool) -> None:
        if seconds > SLOW_TICK_SECONDS:
            self._count = max(1, self._count // 2)
        elif seconds < QUICK_TICK_SECONDS and has_more:
            self._count = min(MOST_ENTRIES, 2 * self._count)

    def _note_time(self) -> None:
        now = time.time()
        if now - self._at > PAUSE_SECONDS:
            self._since = now
        self._at = now

    def _say_alive(self) -> None:
        sign = {
            "since": self._since,
            "at": self._at,
            "entries": self.store.num_entries,
            "points": self.store.num_points,
            "bad_entries": self.store.bad_entries.total(),
        }
        broker().set(ALIVE_KEY, json.dumps(sign), ex=60)
        self._alive_due = time.monotonic() + ALIVE_SECONDS

"""From the training loop to a sink: a buffer that never blocks and never fails the training. Torch-free.

`log` only appends to a queue. A thread packs what has gathered into `protocol.Points` and hands it on: at once after a
pause, else every 100 ms. A sink that is slow or broken costs points, which are counted, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.protocol import Points, SeriesHead

Sink = Callable[[Points, bytes], None]
"""Takes a pack: its head and its arrays. It may block and may raise."""

FLUSH_SECONDS = 0.1
"""Pause between two packs."""
CAPACITY = 100_000
"""Calls of `log` that wait at most; those beyond are dropped and counted."""
PACK_POINTS = 20_000
"""Points in one pack at most (320 kB), so that no single entry clogs the stream."""
NAME_LENGTH = 100
LARGEST_STEP = 2**32 - 1

_Entry = tuple[int, float, tuple[tuple[str, float], ...]]


class Series(NamedTuple):
    """One unpacked series. The three arrays have the same length."""

    name: str
    source: str
    steps: npt.NDArray[np.uint32]
    times_ms: npt.NDArray[np.int64]
    """Unix time in milliseconds."""
    values: npt.NDArray[np.float64]


class MetricLog:
    """The metrics of one client or rank. Use it as a context manager, or call `close`: it sends what is left."""

    def __init__(
        self,
        attempt_id: int,
        source: str,
        sink: Sink,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        capacity: int = CAPACITY,
    ) -> None:
        self.num_dropped = 0
        """Points left out since the start."""
        self._attempt_id = attempt_id
        self._source = source
        self._sink = sink
        self._flush_seconds = flush_seconds
        self._capacity = capacity
        self._entries: deque[_Entry] = deque()
        self._reported_dropped = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._draining = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="metric-log", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Note `values` at `step` (0 to 2^32 - 1). Costs about a microsecond; never blocks, never raises."""
        if len(self._entries) >= self._capacity:
            self.num_dropped += len(values)
            return
        self._entries.append((step, time.time(), tuple(values.items())))
        if not self._wake.is_set():  # reading is free, setting takes a lock: once a pack
            self._wake.set()

    def flush(self) -> None:
        """Send what has gathered before returning, in the caller's thread: for the end of a round, before its result."""
        with self._draining:
            self._drain()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what is left and end the thread. A sink that hangs is left behind after `timeout_seconds`."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_seconds)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            # Cleared before draining: what is appended from here on sets it again.
            self._wake.clear()
            self.flush()
            self._closing.wait(self._flush_seconds)
        self.flush()
        self._send([])  # what was dropped since the last pack

    def _drain(self) -> None:
        for _ in range(self._capacity):  # bounded: a flood must not keep `close` waiting
            pack: list[_Entry] = []
            num_points = 0
            while self._entries and num_points < PACK_POINTS:
                pack.append(self._entries.popleft())
                num_points += len(pack[-1][2])
            if not pack:
                return
            self._send(pack)

    def _send(self, entries: list[_Entry]) -> None:
        columns, num_bad = _columns(entries)
        self.num_dropped += num_bad
        dropped = self.num_dropped - self._reported_dropped
        if not columns and not dropped:
            return
        head, data = pack_points(self._attempt_id, self._source, columns, dropped=dropped)
        self._reported_dropped += dropped
        try:
            self._sink(head, data)
        except Exception:  # the training goes on whatever the sink does; the next pack tells of the loss
            self._reported_dropped -= dropped
            self.num_dropped += sum(series.count for series in head.series)


_Columns = dict[str, tuple[list[int], list[float], list[float]]]
"""Name -> steps, unix seconds, values."""


def _columns(entries: Iterable[_Entry]) -> tuple[_Columns, int]:
    """Sort entries by metric name. Returns the columns and how many points no pack can hold."""
    columns: _Columns = {}
    num_bad = 0
    for step, at, items in entries:
        for name, value in items:
            try:
                number = float(value)
                if not (0 <= step <= LARGEST_STEP and 1 <= len(name) <= NAME_LENGTH):
                    raise ValueError
            except (TypeError, ValueError):
                num_bad += 1
                continue
            steps, times, values = columns.setdefault(name, ([], [], []))
            steps.append(step)
            times.append(at)
            values.append(number)
    return columns, num_bad


def pack_points(attempt_id: int, source: str, columns: _Columns, *, dropped: int = 0) -> tuple[Points, bytes]:
    """Return the head and the arrays of a pack, in the layout that `protocol.Points` describes."""
    base_ms = int(min((times[0] for _, times, _ in columns.values()), default=0.0) * 1000)
    parts: list[bytes] = []
    for steps, times, values in columns.values():
        offsets = np.asarray(times, dtype=np.float64) * 1000 - base_ms
        parts.append(np.asarray(steps, dtype="<u4").tobytes())
        # The clock may have been set back in between; a time before the base counts as the base.
        parts.append(np.clip(offsets, 0, LARGEST_STEP).astype("<u4").tobytes())
        parts.append(np.asarray(values, dtype="<f8").tobytes())
    head = Points(
        attempt_id=attempt_id,
        base_time_ms=base_ms,
        series=[SeriesHead(name=name, source=source, count=len(column[0])) for name, column in columns.items()],
        dropped=dropped,
    )
    return head, b"".join(parts)


def unpack_points(head: Points, data: bytes) -> list[Series]:
    """Return the series of a pack. Raises ValueError where `data` is not as long as `head` says."""
    expected = 16 * sum(series.count for series in head.series)
    if len(data) != expected:
        raise ValueError(f"The pack has {len(data)} bytes, and its head announces {expected}.")
    unpacked: list[Series] = []
    offset = 0
    for series in head.series:
        n = series.count
        steps = np.frombuffer(data, "<u4", n, offset)
        times = np.frombuffer(data, "<u4", n, offset + 4 * n).astype(np.int64) + head.base_time_ms
        values = np.frombuffer(data, "<f8", n, offset + 8 * n)
        unpacked.append(Series(series.name, series.source, steps, times, values))
        offset += 16 * n
    return unpacked

"""Points as packed arrays: from the wire, to chunk rows and back. Pure functions over numpy, no database.

A point is (step, time, value). In memory a run of points is a `Pack`; on the wire and in `Chunk` rows it is three
little-endian buffers, 16 bytes a point (`protocol.Points`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.protocol import Points
from webapp.telemetry.models import Chunk

Buffer: TypeAlias = bytes | memoryview  # what a database gives for a binary column

POINT_BYTES = 16
CHUNK_POINTS = 16_384
"""Most points in one row: 256 kB, so that reading a step range does not fetch a whole series."""
_MAX_SPAN_MS = 2**32 - 1
_MAX_TIME_MS = 2**53
"""Beyond it a time is no date, and no float in the browser either."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A run of n points of one series, in the order in which they were logged."""

    steps: NDArray[np.uint32]  # (n,)
    times_ms: NDArray[np.int64]  # (n,) Unix time in milliseconds
    values: NDArray[np.float64]  # (n,) NaN and infinities included

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, part: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Pack:
        return Pack(self.steps[part], self.times_ms[part], self.values[part])


def unpack_points(points: Points, data: bytes) -> list[tuple[str, str, Pack]]:
    """Return (name, source, pack) of each series in an entry. Raises ValueError where the head and the data differ."""
    expected = POINT_BYTES * sum(head.count for head in points.series)
    if len(data) != expected:
        raise ValueError(f"its head announces {expected} bytes of points, and {len(data)} came")
    if not 0 <= points.base_time_ms < _MAX_TIME_MS:
        raise ValueError(f"its base_time_ms {points.base_time_ms} is no Unix time in milliseconds")
    series = []
    at = 0
    for head in points.series:
        n = head.count
        steps = np.frombuffer(data, "<u4", n, at)
        offsets = np.frombuffer(data, "<u4", n, at + 4 * n)
        values = np.frombuffer(data, "<f8", n, at + 8 * n)
        series.append((head.name, head.source, Pack(steps, points.base_time_ms + offsets.astype(np.int64), values)))
        at += POINT_BYTES * n
    return series


def join_packs(packs: Sequence[Pack]) -> Pack:
    """Concatenate packs of one series, in the given order."""
    if len(packs) == 1:
        return packs[0]
    return Pack(
        np.concatenate([p.steps for p in packs]),
        np.concatenate([p.times_ms for p in packs]),
        np.concatenate([p.values for p in packs]),
    )


def split_pack(pack: Pack) -> Iterator[Pack]:
    """Cut a pack into equal pieces that fit a row: at most CHUNK_POINTS, and a span of times that fits 32 bits."""
    num_pieces = -(-len(pack) // CHUNK_POINTS)
    for steps, times, values in zip(
        np.array_split(pack.steps, num_pieces),
        np.array_split(pack.times_ms, num_pieces),
        np.array_split(pack.values, num_pieces),
        strict=True,
    ):
        piece = Pack(steps, times, values)
        if len(piece) > 1 and int(times.max()) - int(times.min()) > _MAX_SPAN_MS:  # 49 days: halve until it fits
            half = len(piece) // 2
            yield from split_pack(piece[:half])
            yield from split_pack(piece[half:])
        else:
            yield piece


def to_chunk(pack: Pack, *, series_id: int, seq: int) -> Chunk:
    """Return the unsaved row of a pack that `split_pack` yielded."""
    base = int(pack.times_ms.min())
    return Chunk(
        series_id=series_id,
        seq=seq,
        base_time_ms=base,
        first_step=int(pack.steps.min()),
        last_step=int(pack.steps.max()),
        count=len(pack),
        steps=pack.steps.astype("<u4", copy=False).tobytes(),
        times=(pack.times_ms - base).astype("<u4").tobytes(),
        values=pack.values.astype("<f8", copy=False).tobytes(),
    )


def from_columns(base_time_ms: int, steps: Buffer, times: Buffer, values: Buffer) -> Pack:
    """Return the pack of a row's columns. The steps and values are views: nothing is copied."""
    return Pack(
        np.frombuffer(steps, "<u4"),
        base_time_ms + np.frombuffer(times, "<u4").astype(np.int64),
        np.frombuffer(values, "<f8"),
    )


def json_values(values: NDArray[np.float64]) -> list[float | str]:
    """Return numbers that JSON can carry; NaN and the infinities become the strings NaN, Infinity and -Infinity."""
    numbers: list[float | str] = values.tolist()
    for i in np.flatnonzero(~np.isfinite(values)).tolist():
        numbers[i] = "NaN" if np.isnan(values[i]) else "Infinity" if values[i] > 0 else "-Infinity"
    return numbers

"""Every read of curves and logs. The caller has checked that the person may see the job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from django.db.models import Min, QuerySet, Subquery
from typing_extensions import TypedDict  # pydantic reads these, and wants this one before Python 3.12

from trainer.protocol import LogLevel
from webapp.core import live
from webapp.telemetry.frames import log_frame
from webapp.telemetry.models import Chunk, Feed, LogLine, Series
from webapp.telemetry.packing import Pack, from_columns, join_packs, json_values
from webapp.telemetry.thinning import thin

LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")
"""Least to most severe."""
MAX_LOG_LINES = 5_000


class SeriesSummary(TypedDict):
    attempt: int
    name: str
    source: str
    count: int
    last_step: int | None
    last_value: float | None
    """None for NaN and infinities as well."""


class Curve(live.SeriesFrame):
    """One curve of a job, over all its attempts."""

    attempt: int
    """The newest attempt that reported it."""


class Metrics(TypedDict):
    seq: int
    """The feed's number when this was read: the page applies the frames above it."""
    series: list[Curve]


class LogPage(TypedDict):
    seq: int
    lines: list[live.LogFrame]
    """Oldest first."""


def list_series(job_id: int) -> list[SeriesSummary]:
    """Return every curve of every attempt of a job: how many points, and the last one. One query."""
    columns = ("attempt", "name", "source", "count", "last_step", "last_value")
    rows = Series.objects.filter(attempt__job=job_id).order_by("attempt", "name", "source").values_list(*columns)
    return [
        {
            "attempt": attempt,
            "name": name,
            "source": source,
            "count": count,
            "last_step": last_step,
            "last_value": last_value,
        }
        for attempt, name, source, count, last_step, last_value in rows
    ]


def read_metrics(
    job_id: int,
    *,
    name: str | None = None,
    source: str | None = None,
    points: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
) -> Metrics:
    """Return the job's curves between two steps (both included), each thinned to `points` (at least 8; None: all).

    A curve goes on over the job's attempts. Where a later attempt took up again at an earlier step, it wins: the older
    attempt's points from there on are left out, because that training was thrown away. Within an attempt all points
    are kept, sorted by step and then by time.

    The chunks and `seq` are read in one statement, and so in one snapshot, on every database. Two queries in all, three for a
    range with `from_step`.
    """
    feed = Feed.objects.filter(pk=job_id).values("seq")
    seq = feed.values_list("seq", flat=True).first() or 0  # for a job that has no chunk
    chunks = _chunks(job_id, name, source)
    starts = _attempt_starts(chunks) if from_step is not None else {}
    if from_step is not None:
        chunks = chunks.filter(last_step__gte=from_step)
    if to_step is not None:
        chunks = chunks.filter(first_step__lte=to_step)
    rows = chunks.values_list(*_KEY, Subquery(feed), "pk", "base_time_ms", "steps", "times", "values")
    found: defaultdict[tuple[str, str], defaultdict[int, list[tuple[int, Pack]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row_name, row_source, attempt, snapshot_seq, pk, base, steps, times, values in rows:
        seq = snapshot_seq
        found[row_name, row_source][attempt].append((pk, from_columns(base, steps, times, values)))
    series: list[Curve] = []
    for key, attempts in sorted(found.items()):
        pack = _continue(attempts, starts.get(key, {}))
        pack = _within(pack, from_step, to_step)
        if len(pack):
            few = thin(pack, max(8, points)) if points is not None else pack
            series.append(_curve(key, attempt=max(attempts), pack=few))
    return {"seq": seq, "series": series}


_KEY = ("series__name", "series__source", "series__attempt_id")


def _chunks(job_id: int, name: str | None, source: str | None) -> QuerySet[Chunk]:
    # No order: the database would carry the arrays through its sorter.
    chunks = Chunk.objects.filter(series__attempt__job=job_id).order_by()
    if name is not None:
        chunks = chunks.filter(series__name=name)
    if source is not None:
        chunks = chunks.filter(series__source=source)
    return chunks


def _attempt_starts(chunks: QuerySet[Chunk]) -> dict[tuple[str, str], dict[int, int]]:
    """Return each curve's first step by attempt: the chunk that holds it may lie before the range that is read."""
    starts: defaultdict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for name, source, attempt, first in chunks.values_list(*_KEY).annotate(first=Min("first_step")):
        starts[name, source][attempt] = first
    return starts


def _continue(attempts: Mapping[int, list[tuple[int, Pack]]], starts: Mapping[int, int]) -> Pack:
    """Join the attempts' chunks to one curve, sorted by step; a later attempt wins from its first step on."""
    parts: list[Pack] = []
    end: int | None = None
    for attempt in sorted(attempts.keys() | starts.keys(), reverse=True):
        if attempt in attempts:
            pack = join_packs([pack for _, pack in sorted(attempts[attempt], key=lambda found: found[0])])
            if np.any(pack.steps[1:] < pack.steps[:-1]):
                pack = pack[np.lexsort((pack.times_ms, pack.steps))]
            if end is not None:
                pack = pack[pack.steps < end]
            parts.append(pack)
        first = starts.get(attempt, int(parts[-1].steps[0]) if parts and len(parts[-1]) else end)
        end = first if end is None or first is None else min(end, first)
    return join_packs(parts[::-1])


def _within(pack: Pack, from_step: int | None, to_step: int | None) -> Pack:
    start = 0 if from_step is None else int(np.searchsorted(pack.steps, from_step, "left"))
    end = len(pack) if to_step is None else int(np.searchsorted(pack.steps, to_step, "right"))
    return pack[start:end]


def _curve(key: tuple[str, str], *, attempt: int, pack: Pack) -> Curve:
    return {
        "attempt": attempt,
        "name": key[0],
        "source": key[1],
        "steps": pack.steps.tolist(),
        "times": (pack.times_ms / 1000).tolist(),
        "values": json_values(pack.values),
    }


def read_logs(
    job_id: int,
    *,
    after_id: int | None = None,
    before_id: int | None = None,
    limit: int = 500,
    source: str | None = None,
    level: LogLevel | None = None,
    q: str = "",
) -> LogPage:
    """Return up to `limit` lines of all attempts, oldest first: the first ones after `after_id`, else the newest ones.

    `level` is the least severe one wanted; `q` is searched in the text without regard to case.
    """
    seq = Feed.objects.filter(pk=job_id).values_list("seq", flat=True).first() or 0
    lines = LogLine.objects.filter(attempt__job=job_id)
    if after_id is not None:
        lines = lines.filter(pk__gt=after_id)
    if before_id is not None:
        lines = lines.filter(pk__lt=before_id)
    if source is not None:
        lines = lines.filter(source=source)
    if level is not None:
        lines = lines.filter(level__in=LEVELS[LEVELS.index(level) :])
    if q:
        lines = lines.filter(text__icontains=q)
    limit = min(limit, MAX_LOG_LINES)
    if after_id is not None:
        found = list(lines.order_by("id")[:limit])
    else:
        found = list(lines.order_by("-id")[:limit])[::-1]
    return {"seq": seq, "lines": [log_frame(line) for line in found]}

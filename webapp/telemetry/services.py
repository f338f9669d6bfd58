"""Every write of curves and logs. Each call numbers its frames and sends them once its transaction is committed."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import numpy as np
from django.db import transaction

from trainer.protocol import LogLevel, Logs, Points
from webapp.core import live
from webapp.telemetry.compaction import compact_chunks
from webapp.telemetry.frames import advance_feeds, count_points, logs_frame, points_frame, publish_on_commit
from webapp.telemetry.models import Chunk, LogLine
from webapp.telemetry.packing import Pack, join_packs, split_pack, to_chunk, unpack_points
from webapp.telemetry.series import AGGREGATE, MAX_SERIES, SeriesCache

Packs = dict[tuple[str, str], list[Pack]]
"""New packs of one attempt by (metric name, source), each in the order of arrival."""


def record_points(*, entries: Iterable[tuple[Points, bytes]], cache: SeriesCache | None = None) -> None:
    """Store entries of the nodes' streams. Those of attempts that do not exist are left out.

    No row a point: a call writes one chunk for each series, whatever the number of its points. `cache` belongs to a
    caller that stays (ingest); it must drop the cache when its transaction is rolled back.

    Raises ValueError for an entry whose data does not fit its head.
    """
    packs: defaultdict[int, Packs] = defaultdict(lambda: defaultdict(list))
    dropped: Counter[tuple[int, str]] = Counter()
    for points, data in entries:
        for name, source, pack in unpack_points(points, data):
            packs[points.attempt_id][name, source].append(pack)
        if points.dropped and points.series:
            dropped[points.attempt_id, points.series[0].source] += points.dropped
    cache = cache or SeriesCache()
    with transaction.atomic(savepoint=False):
        _save_points(packs, cache)
        _say_dropped(dropped, "points were left out: they were logged faster than the node could send them.", cache)


def record_values(*, attempt_id: int, values: Mapping[tuple[str, str], tuple[int, float]]) -> None:
    """Store one point of each of several series: the server's own, such as a round's aggregate.

    `values` holds (step, value) by (metric name, source). All together, since each call costs seven queries and a frame.
    """
    now = np.array([time.time_ns() // 1_000_000], np.int64)
    packs: Packs = {
        key: [Pack(np.array([step], np.uint32), now, np.array([value]))] for key, (step, value) in values.items()
    }
    with transaction.atomic(savepoint=False):
        _save_points({attempt_id: packs}, SeriesCache())


def record_logs(*, entries: Iterable[Logs], cache: SeriesCache | None = None) -> None:
    """Store lines of the nodes' runners. Those of attempts that do not exist are left out."""
    lines: defaultdict[int, list[LogLine]] = defaultdict(list)
    dropped: Counter[tuple[int, str]] = Counter()
    for logs in entries:
        for line in logs.lines:
            lines[logs.attempt_id].append(
                _line(logs.attempt_id, logs.source, line.level, line.text, time_ms=line.time_ms)
            )
        dropped[logs.attempt_id, logs.source] += logs.dropped
    cache = cache or SeriesCache()
    with transaction.atomic(savepoint=False):
        _save_lines(lines, cache)
        _say_dropped(dropped, "log lines were left out: they came faster than they can be kept.", cache)


def _save_points(by_attempt: Mapping[int, Packs], cache: SeriesCache) -> None:
    # Step 1: number the frames, one for each attempt; this locks the jobs' feeds.
    jobs = cache.jobs_of(by_attempt)
    if not jobs:
        return
    seqs = advance_feeds(Counter(jobs.values()))
    # Step 2: one pack for each series.
    joined = {
        (attempt_id, *key): join_packs(packs) for attempt_id in jobs for key, packs in by_attempt[attempt_id].items()
    }
    ids = cache.ids_of(joined)
    # Step 3: chunks and counters.
    chunks: list[Chunk] = []
    counters: list[tuple[int, int, float | None, int]] = []
    frames: list[tuple[int, live.LiveMessage]] = []
    for attempt_id, job_id in jobs.items():
        seqs[job_id] += 1
        kept = {key[1:]: pack for key, pack in joined.items() if key[0] == attempt_id and key in ids}
        for (name, source), pack in kept.items():
            series_id = ids[attempt_id, name, source]
            chunks += [to_chunk(piece, series_id=series_id, seq=seqs[job_id]) for piece in split_pack(pack)]
            last = float(pack.values[-1])
            counters.append((len(pack), int(pack.steps[-1]), last if np.isfinite(last) else None, series_id))
        frames.append((job_id, points_frame(attempt_id=attempt_id, seq=seqs[job_id], packs=kept)))
    Chunk.objects.bulk_create(chunks)
    count_points(counters)
    # Step 4: keep long series in few rows.
    compact_chunks(cache, cache.count_chunks(chunks))
    # Step 5: on commit, out to the browsers.
    publish_on_commit(frames)
    full = {attempt_id for attempt_id, *_ in joined.keys() - ids.keys()} - cache.full
    cache.full |= full
    text = f"New curves are left out from now on: an attempt may have {MAX_SERIES:,}. Give the metrics fewer names."
    _save_lines({attempt_id: [_line(attempt_id, AGGREGATE, "warning", text)] for attempt_id in full}, cache)


def _save_lines(by_attempt: Mapping[int, list[LogLine]], cache: SeriesCache) -> None:
    jobs = cache.jobs_of(attempt_id for attempt_id, lines in by_attempt.items() if lines)
    if not jobs:
        return
    seqs = advance_feeds(Counter(jobs.values()))
    LogLine.objects.bulk_create([line for attempt_id in jobs for line in by_attempt[attempt_id]])
    frames: list[tuple[int, live.LiveMessage]] = []
    for attempt_id, job_id in jobs.items():
        seqs[job_id] += 1
        frames.append((job_id, logs_frame(attempt_id=attempt_id, seq=seqs[job_id], lines=by_attempt[attempt_id])))
    publish_on_commit(frames)


def _say_dropped(dropped: Mapping[tuple[int, str], int], sentence: str, cache: SeriesCache) -> None:
    """Write into a job's log what did not get into the store."""
    lines: defaultdict[int, list[LogLine]] = defaultdict(list)
    for (attempt_id, source), num in dropped.items():
        if num:
            lines[attempt_id].append(_line(attempt_id, source, "warning", f"{num:,} {sentence}"))
    _save_lines(lines, cache)


def _line(attempt_id: int, source: str, level: LogLevel, text: str, *, time_ms: int | None = None) -> LogLine:
    at = datetime.now(UTC) if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC)
    # PostgreSQL stores no NUL in a text.
    return LogLine(attempt_id=attempt_id, source=source, at=at, level=level, text=text.replace("\0", "\ufffd"))

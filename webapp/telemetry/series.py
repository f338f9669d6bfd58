"""What a writer of points remembers between two commits, so that a tick needs no look-up per series."""

from __future__ import annotations

from collections.abc import Iterable

from django.apps import apps
from django.db.models import Count, Q

from webapp.telemetry.models import Chunk, Series

AGGREGATE = "aggregate"
"""The source of the server's own points. No node may write it."""
SERVER = "server"
"""The source of what the server measures on its own data. No node may write it either."""
MAX_SERIES = 50_000
"""Curves that one attempt may have. More is a bug in a metric's name, such as a step number in it."""
TIERS = ((0, 64), (64, 4096))
"""Counts [least, below) of the small chunks: a tier that holds FANOUT of them is merged into the next one."""
FANOUT = 64

Key = tuple[int, str, str]
"""(attempt id, metric name, source)."""


def tier_of(count: int) -> int | None:
    """Return the tier of a chunk of `count` points; None where it is large enough to stay for ever."""
    return next((tier for tier, (least, below) in enumerate(TIERS) if least <= count < below), None)


class SeriesCache:
    """Ids and chunk counts of the series that one process writes.

    It mirrors rows of the writer's own transaction: after a rollback it must be thrown away. Chunk counts are a hint
    about when to look; compaction counts the rows themselves.
    """

    def __init__(self) -> None:
        self._jobs: dict[int, int] = {}
        self._ids: dict[int, dict[tuple[str, str], int]] = {}
        self._chunks: dict[int, list[int]] = {}
        self.full: set[int] = set()
        """Attempts whose log says already that they have too many series."""

    def jobs_of(self, attempt_ids: Iterable[int]) -> dict[int, int]:
        """Return the job of each attempt that exists. At most one query."""
        wanted = set(attempt_ids)
        if missing := wanted - self._jobs.keys():
            attempts = apps.get_model("jobs", "Attempt")._default_manager  # telemetry names jobs' models by string only
            self._jobs.update(attempts.filter(pk__in=missing).values_list("pk", "job_id"))
        return {attempt_id: self._jobs[attempt_id] for attempt_id in wanted if attempt_id in self._jobs}

    def ids_of(self, keys: Iterable[Key]) -> dict[Key, int]:
        """Return the id of each series, making the missing ones; those beyond MAX_SERIES are left out.

        The caller holds the lock of the jobs' feeds, so nobody else makes the same series now.
        """
        keys = list(keys)
        if unread := {attempt_id for attempt_id, _, _ in keys} - self._ids.keys():
            self._ids.update({attempt_id: {} for attempt_id in unread})
            rows = Series.objects.filter(attempt_id__in=unread).order_by()
            for attempt_id, name, source, pk in rows.values_list("attempt_id", "name", "source", "pk"):
                self._ids[attempt_id][name, source] = pk
        missing: list[Series] = []
        room = {attempt_id: MAX_SERIES - len(self._ids[attempt_id]) for attempt_id, _, _ in keys}
        for attempt_id, name, source in keys:
            if (name, source) not in self._ids[attempt_id] and room[attempt_id] > 0:
                room[attempt_id] -= 1
                missing.append(Series(attempt_id=attempt_id, name=name, source=source))
        for series in Series.objects.bulk_create(missing) if missing else []:
            self._ids[series.attempt_id][series.name, series.source] = series.pk
            self._chunks[series.pk] = [0] * len(TIERS)
        return {key: self._ids[key[0]][key[1:]] for key in keys if key[1:] in self._ids[key[0]]}

    def count_chunks(self, chunks: Iterable[Chunk]) -> list[tuple[int, int]]:
        """Take note of chunks that were just saved; return (series id, tier) wherever there may be FANOUT of them."""
        chunks = [chunk for chunk in chunks if tier_of(chunk.count) is not None]
        if unknown := {chunk.series_id for chunk in chunks} - self._chunks.keys():
            # The new rows are saved already: these counts include them.
            tiers = {
                f"tier_{tier}": Count("pk", filter=Q(count__gte=least, count__lt=below))
                for tier, (least, below) in enumerate(TIERS)
            }
            grouped = Chunk.objects.filter(series_id__in=unknown).order_by().values("series_id").annotate(**tiers)
            for series_id, *counts in grouped.values_list("series_id", *tiers):
                self._chunks[series_id] = counts
        due = []
        for chunk in chunks:
            tier = tier_of(chunk.count)
            assert tier is not None
            counts = self._chunks[chunk.series_id]
            if chunk.series_id not in unknown:
                counts[tier] += 1
            if counts[tier] >= FANOUT and (chunk.series_id, tier) not in due:
                due.append((chunk.series_id, tier))
        return due

    def merged(self, series_id: int, tier: int, *, left: int) -> None:
        """Take note that `left` chunks of a tier remain."""
        self._chunks[series_id][tier] = left

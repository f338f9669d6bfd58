"""Compaction: many small chunks of a series become few large ones, so that a long curve is read in few rows.

Tiers as in a log-structured merge tree (O'Neil et al. 1996): 64 chunks below 64 points become one of the next tier, 64
of those become chunks of up to CHUNK_POINTS. A point is rewritten at most twice, and a series of N points keeps at most
63 + 63 + N / 4096 rows, however small its packs were.
"""

from __future__ import annotations

from webapp.telemetry.models import Chunk
from webapp.telemetry.packing import from_columns, join_packs, split_pack, to_chunk
from webapp.telemetry.series import FANOUT, TIERS, SeriesCache


def compact_chunks(cache: SeriesCache, due: list[tuple[int, int]]) -> None:
    """Merge each (series id, tier) that holds FANOUT chunks. Inside the transaction that saved the newest of them."""
    while due:
        series_id, tier = due.pop()
        least, below = TIERS[tier]
        rows = list(
            Chunk.objects.filter(series_id=series_id, count__gte=least, count__lt=below)
            .order_by("id")
            .values_list("pk", "seq", "base_time_ms", "steps", "times", "values")
        )
        if len(rows) < FANOUT:
            cache.merged(series_id, tier, left=len(rows))
            continue
        joined = join_packs([from_columns(base, steps, times, values) for _, _, base, steps, times, values in rows])
        seq = max(row[1] for row in rows)
        merged = [to_chunk(piece, series_id=series_id, seq=seq) for piece in split_pack(joined)]
        Chunk.objects.filter(pk__in=[row[0] for row in rows]).delete()
        Chunk.objects.bulk_create(merged)
        cache.merged(series_id, tier, left=0)
        due.extend(cache.count_chunks(merged))

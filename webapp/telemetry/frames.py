"""What the browsers get of a commit: numbered frames, bounded in size, sent once the commit is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from django.db import connection, transaction
from django.db.models import F

from webapp.core import live
from webapp.telemetry.models import Feed, LogLine
from webapp.telemetry.packing import Pack, json_values
from webapp.telemetry.thinning import thin

FRAME_POINTS = 5_000
"""Points of a frame; a faster job's frames are thinned. The page's next look at the history has them all."""
SERIES_POINTS = 64
"""Points of one series that a frame carries before it is thinned."""
FRAME_LINES = 200
"""Log lines of a frame; of a longer burst the newest go out, and `skipped` says how many the page must fetch."""


def advance_feeds(num_frames: Mapping[int, int]) -> dict[int, int]:
    """Reserve frame numbers for each job; return the last number that each feed had. Locks the feeds until the commit.

    Locks are taken in the order of the job ids, so two writers cannot wait for each other.
    """
    feeds = Feed.objects.select_for_update().filter(pk__in=num_frames).order_by("pk")
    last = dict(feeds.values_list("pk", "seq"))
    if len(last) < len(num_frames):
        Feed.objects.bulk_create([Feed(pk=pk) for pk in sorted(num_frames)], ignore_conflicts=True)
        last = dict(feeds.values_list("pk", "seq"))
    for num in set(num_frames.values()):
        Feed.objects.filter(pk__in=[pk for pk in num_frames if num_frames[pk] == num]).update(seq=F("seq") + num)
    return last


def points_frame(*, attempt_id: int, seq: int, packs: Mapping[tuple[str, str], Pack]) -> live.PointsMessage:
    """Return one frame of the new points of an attempt, `packs` by (name, source)."""
    most = max(8, min(SERIES_POINTS, FRAME_POINTS // max(1, len(packs))))
    series: list[live.SeriesFrame] = []
    for (name, source), pack in packs.items():
        few = thin(pack, most)
        series.append(
            {
                "name": name,
                "source": source,
                "steps": few.steps.tolist(),
                "times": (few.times_ms / 1000).tolist(),
                "values": json_values(few.values),
            }
        )
    return {"type": "points", "attempt": attempt_id, "seq": seq, "series": series}


def logs_frame(*, attempt_id: int, seq: int, lines: Sequence[LogLine]) -> live.LogMessage:
    """Return one frame of the new log lines of an attempt."""
    newest = lines[-FRAME_LINES:]
    return {
        "type": "logs",
        "attempt": attempt_id,
        "seq": seq,
        "skipped": len(lines) - len(newest),
        "lines": [log_frame(line) for line in newest],
    }


def log_frame(line: LogLine) -> live.LogFrame:
    """Return a saved log line as the browsers and the API get it."""
    return {
        "id": line.pk,
        "source": line.source,
        "time": line.at.timestamp(),
        "level": line.level,
        "text": line.text,
    }


def publish_on_commit(frames: Sequence[tuple[int, live.LiveMessage]]) -> None:
    """Send (job id, frame) pairs once the present transaction is committed."""
    messages = [(live.job_group(job_id), frame) for job_id, frame in frames]
    transaction.on_commit(partial(live.publish, messages))


def count_points(rows: Sequence[tuple[int, int, float | None, int]]) -> None:
    """Add to the series' counters: (points, last step, last value, series id) each. One statement, run for all rows.

    In SQL, for `bulk_update` builds one CASE per column and row, which costs more than saving the points themselves.
    """
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE telemetry_series SET count = count + %s, last_step = %s, last_value = %s WHERE id = %s", rows
        )

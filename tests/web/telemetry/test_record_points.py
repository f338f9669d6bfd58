import math

import numpy as np
import pytest

from tests.web.telemetry.conftest import BASE_MS, make_attempt, make_node, make_points
from webapp.jobs.models import Job
from webapp.telemetry import compaction, series
from webapp.telemetry.models import Chunk, Feed, LogLine, Series
from webapp.telemetry.selectors import read_metrics
from webapp.telemetry.series import SeriesCache
from webapp.telemetry.services import record_points, record_values

pytestmark = pytest.mark.django_db


def test_points_become_one_chunk_for_each_series(attempt):
    record_points(entries=[make_points(attempt.pk, {"train/loss": [(0, 2.5), (1, 2.0)], "test/loss": [(1, 2.25)]})])
    assert Chunk.objects.count() == 2
    assert read_metrics(attempt.job_id) == {
        "seq": 1,
        "series": [
            {
                "attempt": attempt.pk,
                "name": "test/loss",
                "source": "node-1",
                "steps": [1],
                "times": [(BASE_MS + 1) / 1000],
                "values": [2.25],
            },
            {
                "attempt": attempt.pk,
                "name": "train/loss",
                "source": "node-1",
                "steps": [0, 1],
                "times": [BASE_MS / 1000, (BASE_MS + 1) / 1000],
                "values": [2.5, 2.0],
            },
        ],
    }


def test_packs_of_one_call_are_joined(attempt):
    record_points(
        entries=[make_points(attempt.pk, {"loss": [(step, 0.5)]}, base_ms=BASE_MS + step) for step in range(9)]
    )
    assert Chunk.objects.get().count == 9
    assert read_metrics(attempt.job_id)["series"][0]["times"] == [(BASE_MS + 2 * step) / 1000 for step in range(9)]


def test_the_series_keeps_its_count_and_last_point(attempt):
    cache = SeriesCache()
    for first in (0, 10):
        entry = make_points(attempt.pk, {"loss": [(first, 1.0), (first + 1, 0.5)], "broken": [(first, math.nan)]})
        record_points(entries=[entry], cache=cache)
    loss, broken = Series.objects.get(name="loss"), Series.objects.get(name="broken")
    assert (loss.count, loss.last_step, loss.last_value) == (4, 11, 0.5)
    assert (broken.count, broken.last_step, broken.last_value) == (2, 10, None)


def test_every_commit_of_a_job_has_the_next_number(attempt, owner, team, listener, django_capture_on_commit_callbacks):
    other = Job.objects.create(team=team, owner=owner, name="Other", mode="federated", state="running", spec_json={})
    second = make_attempt(other, make_node("node-2"))
    for step in range(3):
        entries = [make_points(attempt.pk, {"loss": [(step, 1.0)]})]
        if step == 1:
            entries.append(make_points(second.pk, {"loss": [(step, 1.0)]}))
        with django_capture_on_commit_callbacks(execute=True):
            record_points(entries=entries)
    assert dict(Feed.objects.values_list("job_id", "seq")) == {attempt.job_id: 3, other.pk: 1}
    assert [frame["seq"] for frame in listener.frames(3)] == [1, 2, 3]
    listener.assert_silent()


def test_the_frame_has_what_was_stored(attempt, listener, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        record_points(entries=[make_points(attempt.pk, {"loss": [(0, 1.5), (1, math.inf), (2, math.nan)]})])
    assert listener.frames(1) == [
        {
            "type": "points",
            "attempt": attempt.pk,
            "seq": 1,
            "series": [
                {
                    "name": "loss",
                    "source": "node-1",
                    "steps": [0, 1, 2],
                    "times": [(BASE_MS + step) / 1000 for step in range(3)],
                    "values": [1.5, "Infinity", "NaN"],
                }
            ],
        }
    ]


def test_a_frame_is_bounded_and_keeps_the_extremes(attempt, listener, django_capture_on_commit_callbacks):
    points = [(step, 100.0 if step == 5_432 else 0.0) for step in range(20_000)]
    with django_capture_on_commit_callbacks(execute=True):
        record_points(entries=[make_points(attempt.pk, {f"m{i}": points for i in range(20)})])
    (frame,) = listener.frames(1)
    assert sum(len(series["steps"]) for series in frame["series"]) <= 5_000
    assert all(max(series["values"]) == 100.0 for series in frame["series"])
    assert sum(len(curve["steps"]) for curve in read_metrics(attempt.job_id)["series"]) == 400_000


def test_a_long_series_of_single_points_stays_in_few_rows_and_loses_none(attempt, monkeypatch):
    for module in (
        series,
        compaction,
    ):  # as in the product, with 16 in place of 64: a full tier is 256 writes, not 4,096
        monkeypatch.setattr(module, "FANOUT", 16)
        monkeypatch.setattr(module, "TIERS", ((0, 16), (16, 256)))
    rng = np.random.default_rng(0)
    values = rng.normal(size=600)
    values[rng.integers(0, 600, 20)] = np.nan
    values[rng.integers(0, 600, 20)] = np.inf
    cache = SeriesCache()
    most = 0
    for step, value in enumerate(values.tolist()):
        record_points(entries=[make_points(attempt.pk, {"loss": [(step, value)]})], cache=cache)
        most = max(most, Chunk.objects.count())
    curve = read_metrics(attempt.job_id)["series"][0]
    assert curve["steps"] == list(range(600))
    np.testing.assert_array_equal(np.array([float(value) for value in curve["values"]]), values)
    assert most <= 15 + 15 + 2
    assert Chunk.objects.filter(count__gte=256).count() == 2
    assert Series.objects.get().count == 600


def test_a_tier_is_the_fan_out_of_the_one_before():
    assert [tier[1] for tier in series.TIERS] == [series.FANOUT ** (n + 1) for n in range(len(series.TIERS))]
    assert [tier[0] for tier in series.TIERS] == [0, *(tier[1] for tier in series.TIERS[:-1])]


def test_a_writer_that_starts_anew_goes_on_compacting(attempt):
    for step in range(200):  # each call forgets, as after a restart
        record_points(entries=[make_points(attempt.pk, {"loss": [(step, 0.0)]})])
    assert Chunk.objects.count() < 64
    assert read_metrics(attempt.job_id)["series"][0]["steps"] == list(range(200))


def test_points_over_months_are_kept_exactly(attempt):
    month_ms = 30 * 86_400_000
    cache = SeriesCache()
    for step in range(64):
        record_points(
            entries=[make_points(attempt.pk, {"loss": [(step, 0.0)]}, base_ms=BASE_MS + step * month_ms)], cache=cache
        )
    times = read_metrics(attempt.job_id)["series"][0]["times"]
    assert times == [(BASE_MS + step * month_ms + step) / 1000 for step in range(64)]


def test_left_out_points_are_said_in_the_log(attempt):
    record_points(entries=[make_points(attempt.pk, {"loss": [(0, 1.0)]}, dropped=1_234)])
    line = LogLine.objects.get()
    assert (line.level, line.source) == ("warning", "node-1")
    assert line.text.startswith("1,234 points were left out")


def test_an_attempt_that_does_not_exist_is_left_out(attempt):
    record_points(entries=[make_points(4_711, {"loss": [(0, 1.0)]}), make_points(attempt.pk, {"loss": [(0, 1.0)]})])
    assert Series.objects.get().attempt_id == attempt.pk


def test_too_many_series_are_left_out_and_said_once(attempt, monkeypatch):
    monkeypatch.setattr("webapp.telemetry.series.MAX_SERIES", 3)
    cache = SeriesCache()
    for step in range(2):
        record_points(entries=[make_points(attempt.pk, {f"loss at {i}": [(step, 1.0)] for i in range(5)})], cache=cache)
    assert Series.objects.count() == 3
    assert [series.count for series in Series.objects.all()] == [2, 2, 2]
    assert LogLine.objects.get().text.startswith("New curves are left out from now on")


def test_the_servers_own_values(attempt, listener, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        record_values(
            attempt_id=attempt.pk,
            values={("test/loss", "aggregate"): (3, 0.25), ("test/accuracy", "aggregate"): (2, 0.5)},
        )
    (frame,) = listener.frames(1)
    assert [(series["name"], series["source"], series["steps"]) for series in frame["series"]] == [
        ("test/loss", "aggregate", [3]),
        ("test/accuracy", "aggregate", [2]),
    ]
    assert len(read_metrics(attempt.job_id)["series"]) == 2


@pytest.mark.parametrize("num_series", [1, 40])
def test_the_number_of_queries_does_not_depend_on_the_number_of_points(attempt, num_series, django_assert_num_queries):
    cache = SeriesCache()
    curves = {f"m{i}": [(step, 0.0) for step in range(100)] for i in range(num_series)}
    record_points(entries=[make_points(attempt.pk, curves)], cache=cache)
    # feed: lock and advance; chunks; counters
    with django_assert_num_queries(4):
        record_points(entries=[make_points(attempt.pk, curves)], cache=cache)

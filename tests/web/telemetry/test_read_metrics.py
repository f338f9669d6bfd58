import math
import time
from typing import Any

import numpy as np
import pytest

from tests.web.telemetry.conftest import BASE_MS, make_attempt, make_logs, make_points
from trainer.protocol import Points, SeriesHead
from webapp.telemetry.selectors import Curve, list_series, read_logs, read_metrics
from webapp.telemetry.services import record_logs, record_points

pytestmark = pytest.mark.django_db


def curves(job_id: int, **options: Any) -> dict[tuple[str, str], Curve]:
    return {(c["name"], c["source"]): c for c in read_metrics(job_id, **options)["series"]}


def test_a_job_without_points(job):
    assert read_metrics(job.pk) == {"seq": 0, "series": []}
    assert list_series(job.pk) == []


def test_by_name_source_and_range(attempt):
    points = [(step, float(step)) for step in range(10)]
    record_points(entries=[make_points(attempt.pk, {"a": points, "b": points}, source=s) for s in ("node-1", "rank 2")])
    job_id = attempt.job_id
    assert set(curves(job_id, name="a")) == {("a", "node-1"), ("a", "rank 2")}
    assert set(curves(job_id, source="rank 2")) == {("a", "rank 2"), ("b", "rank 2")}
    assert curves(job_id, name="a", source="node-1", from_step=3, to_step=5)["a", "node-1"]["values"] == [3.0, 4.0, 5.0]
    assert curves(job_id, from_step=10) == {}


def test_a_later_attempt_wins_from_where_it_took_up(attempt, job, node):
    record_points(entries=[make_points(attempt.pk, {"loss": [(step, 1.0) for step in range(0, 150, 10)]})])
    attempt.move_to("failed")
    later = make_attempt(job, node, number=2)
    record_points(entries=[make_points(later.pk, {"loss": [(step, 2.0) for step in (101, 111)]})])
    record_points(entries=[make_points(later.pk, {"loss": [(step, 2.0) for step in (131, 141, 151)]})])
    curve = curves(job.pk)["loss", "node-1"]
    assert curve["attempt"] == later.pk
    assert curve["steps"] == [*range(0, 101, 10), 101, 111, 131, 141, 151]
    assert curve["values"] == [1.0] * 11 + [2.0] * 5
    # The older attempt's steps 120 and 130 stay out, though the chunk that says so lies before the range.
    assert curves(job.pk, from_step=115)["loss", "node-1"]["steps"] == [131, 141, 151]
    assert curves(job.pk, to_step=90)["loss", "node-1"]["steps"] == list(range(0, 91, 10))
    assert curves(job.pk, from_step=95, to_step=105)["loss", "node-1"]["steps"] == [100, 101]


def test_a_step_that_was_logged_again_is_kept_in_order_of_time(attempt):
    record_points(entries=[make_points(attempt.pk, {"loss": [(0, 0.0), (5, 5.0)]})])
    record_points(entries=[make_points(attempt.pk, {"loss": [(3, 3.0), (5, 5.5)]}, base_ms=BASE_MS + 100)])
    assert curves(attempt.job_id)["loss", "node-1"]["values"] == [0.0, 3.0, 5.0, 5.5]


def test_thinned_points_keep_what_is_not_a_number(attempt):
    values = [math.nan if step == 700 else float(step % 50) for step in range(10_000)]
    record_points(entries=[make_points(attempt.pk, {"loss": list(enumerate(values))})])
    curve = curves(attempt.job_id, points=100)["loss", "node-1"]
    assert len(curve["steps"]) <= 100
    assert curve["values"][curve["steps"].index(700)] == "NaN"


def test_a_million_points_are_thinned_quickly(attempt):
    n = 1_000_000
    steps = np.arange(n, dtype="<u4")
    data = steps.tobytes() + steps.tobytes() + np.random.default_rng(0).normal(size=n).tobytes()
    head = Points(attempt_id=attempt.pk, base_time_ms=BASE_MS, series=[SeriesHead(name="x", source="s", count=n)])
    record_points(entries=[(head, data)])
    read_metrics(attempt.job_id, points=2_000)
    started = time.perf_counter()
    (curve,) = read_metrics(attempt.job_id, points=2_000)["series"]
    seconds = time.perf_counter() - started
    assert len(curve["steps"]) == 2_000
    assert seconds < 0.5  # 0.04 s on a quiet machine


@pytest.mark.parametrize("num_series", [1, 30])
def test_queries_do_not_grow(attempt, num_series, django_assert_num_queries):
    record_points(entries=[make_points(attempt.pk, {f"m{i}": [(0, 1.0)] for i in range(num_series)})])
    with django_assert_num_queries(2):
        read_metrics(attempt.job_id)
    with django_assert_num_queries(3):
        read_metrics(attempt.job_id, from_step=0)
    with django_assert_num_queries(1):
        list_series(attempt.job_id)


def test_series_are_listed_with_their_last_point(attempt):
    record_points(entries=[make_points(attempt.pk, {"loss": [(0, 1.0), (4, 0.5)], "nan": [(1, math.nan)]})])
    assert list_series(attempt.job_id) == [
        {"attempt": attempt.pk, "name": "loss", "source": "node-1", "count": 2, "last_step": 4, "last_value": 0.5},
        {"attempt": attempt.pk, "name": "nan", "source": "node-1", "count": 1, "last_step": 1, "last_value": None},
    ]


def test_logs_are_paged_and_searched(attempt):
    record_logs(entries=[make_logs(attempt.pk, *(f"epoch {i}" for i in range(10)))])
    record_logs(entries=[make_logs(attempt.pk, "Broken pipe", level="error", source="rank 1")])
    job_id = attempt.job_id

    def texts(**options: Any) -> list[str]:
        return [line["text"] for line in read_logs(job_id, **options)["lines"]]

    assert texts(limit=2) == ["epoch 9", "Broken pipe"]
    first = read_logs(job_id, after_id=0, limit=3)["lines"]
    assert [line["text"] for line in first] == ["epoch 0", "epoch 1", "epoch 2"]
    assert texts(after_id=first[-1]["id"], limit=1) == ["epoch 3"]
    assert texts(before_id=first[-1]["id"]) == ["epoch 0", "epoch 1"]
    assert texts(level="warning") == ["Broken pipe"]
    assert texts(source="rank 1") == ["Broken pipe"]
    assert texts(q="broken") == ["Broken pipe"]

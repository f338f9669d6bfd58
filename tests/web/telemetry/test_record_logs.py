import pytest

from tests.web.telemetry.conftest import BASE_MS, make_logs
from webapp.ingest.limits import BURST_LINES, LINES_PER_SECOND, LineBudget
from webapp.telemetry.models import LogLine
from webapp.telemetry.selectors import read_logs
from webapp.telemetry.services import record_logs


@pytest.mark.django_db
def test_lines_are_stored_and_sent(attempt, listener, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        record_logs(entries=[make_logs(attempt.pk, "epoch 1", "epoch 2"), make_logs(attempt.pk, "oh", level="error")])
    (frame,) = listener.frames(1)
    assert frame["seq"] == 1
    assert frame["skipped"] == 0
    assert [line["text"] for line in frame["lines"]] == ["epoch 1", "epoch 2", "oh"]
    assert frame["lines"] == read_logs(attempt.job_id)["lines"]
    assert frame["lines"][0]["time"] == BASE_MS / 1000


@pytest.mark.django_db
def test_points_and_lines_share_the_numbers(attempt):
    record_logs(entries=[make_logs(attempt.pk, "one")])
    record_logs(entries=[make_logs(attempt.pk, "two")])
    assert read_logs(attempt.job_id)["seq"] == 2


@pytest.mark.django_db
def test_a_burst_goes_out_as_its_newest_lines(attempt, listener, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        record_logs(entries=[make_logs(attempt.pk, *(f"line {i}" for i in range(450)))])
    (frame,) = listener.frames(1)
    assert frame["skipped"] == 250
    assert frame["lines"][0]["text"] == "line 250"
    assert LogLine.objects.count() == 450


@pytest.mark.django_db
def test_what_was_left_out_is_said(attempt):
    record_logs(entries=[make_logs(attempt.pk, "one", dropped=9_000)])
    assert [line["level"] for line in read_logs(attempt.job_id)["lines"]] == ["info", "warning"]
    assert "9,000 log lines were left out" in read_logs(attempt.job_id)["lines"][1]["text"]


@pytest.mark.django_db
def test_a_line_with_nul_is_stored(attempt):
    record_logs(entries=[make_logs(attempt.pk, "a\0b")])
    assert read_logs(attempt.job_id)["lines"][0]["text"] == "a\ufffdb"


def test_a_source_may_write_a_burst_and_then_a_steady_rate():
    now = 100.0
    budget = LineBudget(clock=lambda: now)
    entry = make_logs(1, *(["x"] * 1_000))
    taken = [budget.take(entry) for _ in range(BURST_LINES // 1_000 + 1)]
    assert sum(len(logs.lines) for logs in taken) == BURST_LINES
    assert taken[-1].dropped == 1_000
    now += 0.5
    assert len(budget.take(entry).lines) == LINES_PER_SECOND // 2
    # Another source has a budget of its own.
    assert len(budget.take(make_logs(1, "x", source="node-2")).lines) == 1

"""The API's shapes. Who may call it: tests/web/api/test_people.py."""

import json
import math

import pytest

from tests.conftest import browser_of
from tests.web.telemetry.conftest import BASE_MS, make_logs, make_points
from webapp.telemetry.services import record_logs, record_points

pytestmark = pytest.mark.django_db


@pytest.fixture
def get(owner, attempt):
    browser = browser_of(owner)

    def get(path: str, status: int = 200):
        answer = browser.get(f"/api/v1/jobs/{attempt.job_id}{path}")
        assert answer.status_code == status, answer.content
        # Strict JSON: no NaN without quotes.
        return json.loads(answer.content, parse_constant=pytest.fail)

    return get


def test_metrics(get, attempt):
    record_points(entries=[make_points(attempt.pk, {"loss": [(0, 1.5), (1, math.nan), (2, -math.inf)]})])
    assert get("/metrics?name=loss&source=node-1&from_step=1") == {
        "seq": 1,
        "series": [
            {
                "attempt": attempt.pk,
                "name": "loss",
                "source": "node-1",
                "steps": [1, 2],
                "times": [(BASE_MS + 1) / 1000, (BASE_MS + 2) / 1000],
                "values": ["NaN", "-Infinity"],
            }
        ],
    }


def test_thinned_metrics(get, attempt):
    record_points(entries=[make_points(attempt.pk, {"loss": [(step, 0.0) for step in range(5_000)]})])
    assert len(get("/metrics?points=100")["series"][0]["steps"]) == 100
    assert len(get("/metrics")["series"][0]["steps"]) == 5_000


def test_series(get, attempt):
    record_points(entries=[make_points(attempt.pk, {"loss": [(0, 1.5), (7, 0.5)]})])
    assert get("/series") == [
        {"attempt": attempt.pk, "name": "loss", "source": "node-1", "count": 2, "last_step": 7, "last_value": 0.5}
    ]


def test_logs(get, attempt):
    record_logs(entries=[make_logs(attempt.pk, "one", "two"), make_logs(attempt.pk, "bad", level="error")])
    page = get("/logs")
    assert page["seq"] == 1
    assert [line["text"] for line in page["lines"]] == ["one", "two", "bad"]
    assert page["lines"][0].keys() == {"id", "source", "time", "level", "text"}
    assert [line["text"] for line in get("/logs?level=warning")["lines"]] == ["bad"]
    assert get(f"/logs?after_id={page['lines'][-1]['id']}")["lines"] == []


@pytest.mark.parametrize(
    "path",
    ["/metrics?points=7", "/metrics?from_step=-1", "/metrics?to_step=4294967296", "/logs?limit=0", "/logs?level=loud",
     "/logs?after_id=99999999999999999999"],
)  # fmt: skip
def test_bad_input_is_named(path, get):
    assert path.split("?")[1].split("=")[0] in str(get(path, 422)["errors"])

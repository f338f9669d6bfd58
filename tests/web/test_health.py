"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import json

import pytest
from django.db import DatabaseError, InterfaceError, connection
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.web.fleet.helpers import bring_online, enrol
from webapp.jobs.door import count_stray
from webapp.jobs.models import Stray

pytestmark = pytest.mark.django_db


def samples(text: str) -> dict[tuple[str, str], float]:
    """Value by name and single label."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_all_is_well(broker):
    for path in ("/healthz", "/readyz"):
        answer = Client().get(path)
        assert answer.status_code == 200
        assert answer.json()["status"] == "ok"
    assert Client().get("/healthz").json()["checks"] == {"web": "ok", "database": "ok", "broker": "ok"}


def test_a_broker_that_is_away_is_named(settings):
    settings.BROKER_URL = "redis://127.0.0.1:1/0"
    answer = Client().get("/healthz")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert (checks["web"], checks["database"]) == ("ok", "ok")
    assert "refused" in checks["broker"]


@pytest.mark.parametrize("kind", [DatabaseError, InterfaceError])
def test_a_database_that_is_away_is_named(broker, kind):
    def refuse(*_):
        raise kind("database is locked")

    with connection.execute_wrapper(refuse):
        answer = Client().get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"web": "ok", "database": "database is locked", "broker": "ok"}


def test_a_missing_migration_is_not_ready(broker):
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'fleet'")
    answer = Client().get("/readyz")
    assert answer.status_code == 503
    assert "run 'manage.py migrate'" in answer.json()["checks"]["migrations"]
    assert Client().get("/healthz").status_code == 200


def test_metrics(admin, broker):
    node = bring_online(enrol(admin, "node-1")[0])
    enrol(admin, "node-2", preapproved=False)
    count_stray(node_id=str(node.pk), kind=Stray.Kind.UPDATE, reason="Late.", num=3)
    broker.xadd(f"n:{node.pk}:telemetry", {"kind": "points"})
    broker.lpush(f"n:{node.pk}:tasks", "x", "y")
    broker.set("ingest:alive", json.dumps({"since": 1, "at": 2.5, "entries": 10, "points": 100, "bad_entries": 1}))
    answer = Client().get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found["trainmaster_nodes", "online"] == 1
    assert found["trainmaster_nodes", "pending"] == 1
    assert found["trainmaster_nodes", "revoked"] == 0
    assert found["trainmaster_jobs", "running"] == 0
    assert found["trainmaster_strays_total", "update"] == 3
    assert found["trainmaster_strays_total", "report"] == 0
    assert found["trainmaster_telemetry_entries_waiting", ""] == 1
    assert found["trainmaster_node_tasks_waiting", ""] == 2
    assert found["trainmaster_ingest_points_total", ""] == 100
    assert found["trainmaster_ingest_alive_at_seconds", ""] == 2.5
    assert (found["trainmaster_up", "database"], found["trainmaster_up", "broker"]) == (1, 1)


def test_metrics_without_a_broker(settings):
    settings.BROKER_URL = "redis://127.0.0.1:1/0"
    found = samples(Client().get("/metrics").text)
    assert (found["trainmaster_up", "database"], found["trainmaster_up", "broker"]) == (1, 0)
    assert found["trainmaster_nodes", "online"] == 0
    assert ("trainmaster_node_tasks_waiting", "") not in found

"""/healthz, /readyz and /metrics: for supervisors, load balancers and Prometheus. No secrets, no names of people or jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import redis
from django.apps import apps
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from trainer.protocol import TASK_QUEUE, TELEMETRY_STREAM, key_prefix
from webapp.core.broker import broker


def healthz(request: HttpRequest) -> JsonResponse:
    """200 when web, database and broker answer; else 503, and the JSON says which does not and why."""
    return _report({"web": _nothing, "database": _ask_database, "broker": _ask_broker})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when, besides, the database is as this version needs it."""
    return _report({"database": _ask_database, "broker": _ask_broker, "migrations": _check_migrations})


def metrics(request: HttpRequest) -> HttpResponse:
    """Counts read at this moment, in Prometheus' text format. What cannot be read is left out, and `trainmaster_up` is 0."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fleet())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
]


def _report(checks: dict[str, Callable[[], None]]) -> JsonResponse:
    answers = {}
    for name, check in checks.items():
        try:
            check()
            answers[name] = "ok"
        except (Error, redis.RedisError, _Behind) as error:
            answers[name] = " ".join(str(error).split()) or type(error).__name__
    healthy = set(answers.values()) == {"ok"}
    return JsonResponse(
        {"status": "ok" if healthy else "failing", "checks": answers},
        status=200 if healthy else 503,
        headers={"Cache-Control": "no-store"},
    )


class _Behind(Exception):
    """The database lacks migrations of this version."""


def _nothing() -> None:
    """That this runs is the check."""


def _ask_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_broker() -> None:
    broker().ping()


def _check_migrations() -> None:
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        raise _Behind(f"{len(missing)} migrations are missing: run 'manage.py migrate'.")


class _Fleet(Collector):
    """Nodes and jobs by state, strays, and what waits in the broker. Other apps' models are asked for by name: core stands below them."""

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("trainmaster_up", "1 when this part answered the scrape.", labels=["part"])
        for part, read in (("database", _rows), ("broker", _backlogs)):
            try:
                yield from list(read())
                up.add_metric([part], 1)
            except (Error, redis.RedisError):
                up.add_metric([part], 0)
        yield up


def _rows() -> Iterator[Metric]:
    for name, label in (("nodes", "fleet.Node"), ("jobs", "jobs.Job")):
        model = apps.get_model(label)
        counts = dict(model._default_manager.order_by().values_list("state").annotate(Count("pk")))
        family = GaugeMetricFamily(f"trainmaster_{name}", f"Number of {name} by state.", labels=["state"])
        for state in model.MOVES:
            family.add_metric([state], counts.get(state, 0))
        yield family
    stray = apps.get_model("jobs.Stray")
    sums = dict(stray._default_manager.order_by().values_list("kind").annotate(Sum("count")))
    strays = CounterMetricFamily(
        "trainmaster_strays", "Messages of nodes that nobody waited for, by kind.", labels=["kind"]
    )
    for kind in stray.Kind.values:
        strays.add_metric([kind], sums.get(kind, 0))
    yield strays


def _backlogs() -> Iterator[Metric]:
    node_ids = [str(pk) for pk in apps.get_model("fleet.Node")._default_manager.values_list("pk", flat=True)]
    pipe = broker().pipeline(transaction=False)
    pipe.get("ingest:alive")
    pipe.llen("conductor")
    for node_id in node_ids:
        pipe.xlen(key_prefix(node_id) + TELEMETRY_STREAM)
        pipe.llen(key_prefix(node_id) + TASK_QUEUE)
    lease, conductor, *lengths = pipe.execute()
    yield GaugeMetricFamily("trainmaster_conductor_tasks_waiting", "Tasks that no conductor took yet.", value=conductor)
    yield GaugeMetricFamily(
        "trainmaster_telemetry_entries_waiting", "Entries in the nodes' streams that ingest did not store yet.",
        value=sum(lengths[::2]),
    )  # fmt: skip
    yield GaugeMetricFamily("trainmaster_node_tasks_waiting", "Tasks that no node took yet.", value=sum(lengths[1::2]))
    if lease:
        ingest = json.loads(lease)
        yield GaugeMetricFamily(
            "trainmaster_ingest_alive_at_seconds", "Last sign of ingest, Unix time.", value=ingest["at"]
        )
        for key in ("entries", "points", "bad_entries"):
            if key in ingest:
                yield CounterMetricFamily(
                    f"trainmaster_ingest_{key}", f"Telemetry {key} since ingest started.", value=ingest[key]
                )

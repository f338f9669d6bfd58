"""The conductor's Celery application: it schedules jobs, opens and closes rounds, and sweeps for lost things.

    celery -A webapp.celery worker -P threads      the conductor
    celery -A webapp.celery beat                   its clock

Every task is one line over the service of its name, and may run twice or not at all: the rows are the truth, and the
sweeps on the clock pick up what a lost message left behind.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, bootsteps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

from django.conf import settings

from webapp.core.broker import tls_options

SWEEP_EXPIRES_SECONDS = 300
"""Sweeps older than this are dropped, so that they do not pile up while no conductor runs. An expiry is a time of day: it is as
wide as the clocks of beat's host and the conductor's may differ."""


def _sweep(task: str, *, every: float) -> dict[str, Any]:
    return {"task": task, "schedule": every, "options": {"expires": SWEEP_EXPIRES_SECONDS}}


app = Celery("trainmaster")
app.conf.update(
    broker_url=settings.BROKER_URL,
    broker_use_ssl=tls_options(settings.BROKER_URL, settings.BROKER_CA_FILE) or None,
    broker_connection_retry_on_startup=True,
    # A broker restart takes seconds: wait for it, for ever.
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": 3600,
        "socket_timeout": 10,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
    task_default_queue="conductor",
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_concurrency=4,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    timezone="UTC",
    beat_schedule={
        # The edges are driven by on-commit messages, the clock only mends.
        "sweep_nodes": _sweep("webapp.fleet.tasks.sweep_nodes", every=2.0),
        "sweep_jobs": _sweep("webapp.jobs.tasks.sweep_jobs", every=2.0),
        "sync_broker_users": _sweep("webapp.fleet.tasks.sync_broker_users", every=30.0),
        "sweep_incoming": _sweep("webapp.blobs.tasks.sweep_incoming", every=3600.0),
        "sweep_blobs": _sweep("webapp.jobs.tasks.sweep_blobs", every=3600.0),
    },
)
app.autodiscover_tasks()


class WarmUp(bootsteps.Step):
    """Import torch before the first task is taken: it takes seconds, and beat and web, which run no worker, never need it."""

    def __init__(self, parent: object, **options: object) -> None:
        super().__init__(parent, **options)
        import webapp.jobs.aggregation  # noqa: F401


app.steps["worker"].add(WarmUp)

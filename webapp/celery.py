"""The conductor's Celery application: it schedules jobs, opens and closes rounds, and sweeps for lost things.

    celery -A webapp.celery worker -P threads      the conductor
    celery -A webapp.celery beat                   its clock

Every task is one line over the service of its name, and may run twice or not at all: the rows are the truth, and the
sweeps on the clock pick up what a lost message left behind.
"""

from __future__ import annotations

import os

from celery import Celery, bootsteps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

from django.conf import settings

from webapp.core.broker import tls_options

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
        # Wide enough for what beat is for: the edges are driven by on-commit messages, the clock only mends.
        "sweep_nodes": {"task": "webapp.fleet.tasks.sweep_nodes", "schedule": 2.0, "options": {"expires": 10}},
        "sweep_jobs": {"task": "webapp.jobs.tasks.sweep_jobs", "schedule": 2.0, "options": {"expires": 10}},
        "sync_broker_users": {
            "task": "webapp.fleet.tasks.sync_broker_users",
            "schedule": 30.0,
            "options": {"expires": 60},
        },
        "sweep_incoming": {
            "task": "webapp.blobs.tasks.sweep_incoming",
            "schedule": 3600.0,
            "options": {"expires": 600},
        },
        "sweep_blobs": {"task": "webapp.jobs.tasks.sweep_blobs", "schedule": 3600.0, "options": {"expires": 600}},
    },
)
app.autodiscover_tasks()


class WarmUp(bootsteps.Step):
    """Import torch before the first task is taken: it takes seconds, and beat and web, which run no worker, never need it."""

    def __init__(self, parent: object, **options: object) -> None:
        super().__init__(parent, **options)
        import webapp.jobs.aggregation  # noqa: F401


app.steps["worker"].add(WarmUp)

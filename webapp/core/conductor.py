"""Requests to the conductor: Celery tasks by name, fire and forget."""

from __future__ import annotations

import logging
from functools import lru_cache

from django.conf import settings
from kombu import Connection
from kombu.connection import ConnectionPool
from kombu.exceptions import OperationalError

from webapp.celery import app

logger = logging.getLogger(__name__)

EXPIRES_SECONDS = 30
"""A request that waited longer for a conductor is dropped: the sweeps have done its work by then."""


def ask_conductor(task: str, *args: int) -> None:
    """Ask the conductor to run `task`, such as webapp.jobs.tasks.schedule_jobs. Call it after the commit.

    A broker that is away costs a delay until the next sweep, no more. The connection is not the Celery app's own: that one
    tries for 6 s (measured) before it gives up, which is right for a worker and wrong for a web request.
    """
    try:
        with _connections(settings.BROKER_URL, settings.BROKER_CA_FILE).acquire(block=True) as connection:
            app.send_task(task, args=args, connection=connection, expires=EXPIRES_SECONDS, retry=False)
    except (OperationalError, OSError) as error:
        logger.warning("The broker did not take %s, and the next sweep does its work: %s", task, error)


@lru_cache(maxsize=4)
def _connections(url: str, ca_file: str) -> ConnectionPool:
    tls = {"ssl_ca_certs": ca_file} if ca_file and url.startswith("rediss://") else None
    options = {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "max_retries": 1,
        "interval_start": 0,
    }
    return Connection(url, ssl=tls, transport_options=options).Pool(limit=8)

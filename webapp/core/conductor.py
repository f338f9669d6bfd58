"""Requests to the conductor: Celery tasks by name, fire and forget."""

from __future__ import annotations

import logging

from kombu.exceptions import OperationalError

from webapp.celery import app
from webapp.core.broker import sending_connections

logger = logging.getLogger(__name__)


def ask_conductor(task: str, *args: int) -> None:
    """Ask the conductor to run `task`, such as webapp.jobs.tasks.schedule_jobs. Call it after the commit.

    A broker that is away costs a delay until the next sweep, no more. A request never expires: an expiry is a time of day, and
    a conductor whose clock is ahead would drop everything. One that comes late finds nothing left to do.
    """
    try:
        with sending_connections().acquire(block=True) as connection:
            app.send_task(task, args=args, connection=connection, retry=False)
    except (OperationalError, OSError) as error:
        logger.warning("The broker did not take %s, and the next sweep does its work: %s", task, error)

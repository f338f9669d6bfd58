"""What leaves after a commit: requests to the conductor and hints to the browsers. Both may be lost without harm."""

from __future__ import annotations

import logging
from typing import Literal

from django.db import transaction
from kombu.exceptions import OperationalError

from webapp.celery import app
from webapp.core import live
from webapp.jobs.models import Job

logger = logging.getLogger(__name__)

EXPIRES_SECONDS = 30
"""A request that waited longer for a conductor is dropped: the sweep has done its work by then."""


def request(task: Literal["schedule_jobs", "advance_attempt"], *args: int) -> None:
    """On commit, ask the conductor to run `task`. A broker that is away costs a delay until the next sweep, no more."""
    transaction.on_commit(lambda: _send(task, args))


def _send(task: str, args: tuple[int, ...]) -> None:
    try:
        app.send_task(f"webapp.jobs.tasks.{task}", args=args, expires=EXPIRES_SECONDS, retry=False)
    except OperationalError as error:
        logger.warning("The broker did not take %s: %s. The next sweep does it.", task, error)


def tell_browsers(job: Job, *what: Literal["state", "rounds", "artifacts"]) -> None:
    """On commit, tell everyone who watches the job or its team's list what to fetch again."""
    messages: list[tuple[str, live.LiveMessage]] = [
        (group, {"type": "changed", "job": job.pk, "what": part})
        for part in what
        for group in (live.job_group(job.pk), live.team_group(job.team_id))
    ]
    transaction.on_commit(lambda: live.publish(messages), robust=True)

"""What leaves after a commit: requests to the conductor and hints to the browsers. Both may be lost without harm."""

from __future__ import annotations

from functools import partial
from typing import Literal

from django.db import transaction

from webapp.core import live
from webapp.core.conductor import ask_conductor
from webapp.jobs.models import Job


def request(task: Literal["schedule_jobs", "advance_attempt"], *args: int) -> None:
    """On commit, ask the conductor to run a task of this app."""
    transaction.on_commit(partial(ask_conductor, f"webapp.jobs.tasks.{task}", *args))


def tell_browsers(job: Job, *what: Literal["state", "rounds", "artifacts"]) -> None:
    """On commit, tell everyone who watches the job or its team's list what to fetch again."""
    messages: list[tuple[str, live.LiveMessage]] = [
        (group, {"type": "changed", "job": job.pk, "what": part})
        for part in what
        for group in (live.job_group(job.pk), live.team_group(job.team_id))
    ]
    transaction.on_commit(partial(live.publish, messages), robust=True)

"""What a job waits for: for whom, since when, until when, and what happens then."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.models import Job


class Waiting(TypedDict):
    """The value of `Job.waiting_for`. Times are ISO 8601 with their zone."""

    what: str
    since: str
    until: str | None
    """None: until it comes, or the job is cancelled."""
    then: str


def waiting(*, what: str, since: datetime, then: str, until: datetime | None = None) -> Waiting:
    return Waiting(what=what, since=since.isoformat(), until=until.isoformat() if until else None, then=then)


def set_waiting(job: Job, value: Waiting | None) -> None:
    """Record what `job` waits for. Writes, and tells the browsers, only when it changed: sweeps call it every 2 s."""
    if job.waiting_for == value:
        return
    Job.objects.filter(pk=job.pk, state=job.state).update(waiting_for=value)
    job.waiting_for = value
    tell_browsers(job, "state")

"""Curves and logs on the API, for tokens and for the job page alike."""

from __future__ import annotations

from typing import Annotated

from ninja import Query, Router

from trainer.protocol import LogLevel
from webapp.jobs.selectors import get_job
from webapp.teams.auth import ApiRequest
from webapp.telemetry import selectors

router = Router()

Text = Annotated[str | None, Query(max_length=100)]
Step = Annotated[int | None, Query(ge=0, le=2**32 - 1)]
RowId = Annotated[int | None, Query(ge=0, le=2**63 - 1)]


@router.get("/jobs/{int:job_id}/series", response=list[selectors.SeriesSummary])
def list_series(request: ApiRequest, job_id: int) -> list[selectors.SeriesSummary]:
    """Every curve of a job, with its number of points and the last one."""
    return selectors.list_series(get_job(request.user, job_id).pk)


@router.get("/jobs/{int:job_id}/metrics", response=selectors.Metrics)
def read_metrics(
    request: ApiRequest,
    job_id: int,
    name: Text = None,
    source: Text = None,
    points: Annotated[int | None, Query(ge=8, le=1_000_000)] = None,
    from_step: Step = None,
    to_step: Step = None,
) -> selectors.Metrics:
    """The curves, each thinned to `points`. NaN and the infinities are the strings NaN, Infinity and -Infinity."""
    job = get_job(request.user, job_id)
    return selectors.read_metrics(job.pk, name=name, source=source, points=points, from_step=from_step, to_step=to_step)


@router.get("/jobs/{int:job_id}/logs", response=selectors.LogPage)
def read_logs(
    request: ApiRequest,
    job_id: int,
    after_id: RowId = None,
    before_id: RowId = None,
    limit: Annotated[int, Query(ge=1, le=selectors.MAX_LOG_LINES)] = 500,
    source: Text = None,
    level: LogLevel | None = None,
    q: Annotated[str, Query(max_length=200)] = "",
) -> selectors.LogPage:
    """Log lines, oldest first: the newest `limit` ones, or those that follow `after_id`."""
    job = get_job(request.user, job_id)
    return selectors.read_logs(
        job.pk, after_id=after_id, before_id=before_id, limit=limit, source=source, level=level, q=q
    )

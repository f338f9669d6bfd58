"""Jobs on the API: submit, list, read, control, and take away what they leave."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import yaml
from django.db.models import QuerySet
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from ninja import Body, Header, Query, Router, Status

from trainer.spec import JobSpec
from webapp.blobs.services import path_of
from webapp.core.downloads import send_file
from webapp.core.errors import Refusal
from webapp.core.problem_api import refuse_unknown_parameters
from webapp.jobs import selectors, services
from webapp.jobs.api_schemas import (
    ArtifactOut,
    EventPage,
    JobDetail,
    JobFilters,
    JobPage,
    PageFilters,
    ResumeIn,
    RoundPage,
    plain_spec,
)
from webapp.jobs.models import Artifact, Job
from webapp.jobs.search import search_jobs
from webapp.jobs.spec_merge import merge_spec
from webapp.teams.auth import ApiRequest
from webapp.teams.models import Team
from webapp.teams.selectors import team_for_job

router = Router(tags=["jobs"])

Key = Annotated[str, Header(alias="Idempotency-Key", max_length=100)]
SPEC_BODY = {"requestBody": {"content": {"application/json": {"schema": JobSpec.model_json_schema()}}}}


@router.post("/jobs", response={201: JobDetail}, openapi_extra=SPEC_BODY)
def submit_job(
    request: ApiRequest, response: HttpResponse, body: Annotated[dict[str, Any], Body()], team: str = "", key: Key = ""
) -> Status[Job]:
    """Submit a job. The body is its spec, bare or as {"spec": ...}; `team` is a slug that those in several teams give.

    With an `Idempotency-Key`, sending the same once more gives the job of the first time.
    """
    chosen = team_for_job(request.user, team)
    spec = _checked(_spec_in(body), team=chosen)
    job = services.submit_job(team=chosen, owner=request.user, spec=spec, submission_key=key)
    return _created(job, response)


@router.get("/jobs", response=JobPage)
def list_jobs(request: ApiRequest, filters: Query[JobFilters]) -> dict[str, Any]:
    """The jobs of one's teams, newest first."""
    refuse_unknown_parameters(request, JobFilters)
    jobs = search_jobs(
        request.user,
        states=filters.state,
        mode=filters.mode,
        team=filters.team,
        owner=filters.owner,
        text=filters.q,
    )
    return _page(jobs.select_related("team", "owner").defer("spec_json"), filters.limit, filters.offset)


@router.get("/jobs/{int:job_id}", response=JobDetail)
def read_job(request: ApiRequest, job_id: int) -> Job:
    """One job: its state and the reason, what it waits for, its spec, and its attempts."""
    return selectors.get_job(request.user, job_id)


@router.post("/jobs/{int:job_id}/cancel", response=JobDetail)
def cancel_job(request: ApiRequest, job_id: int) -> Job:
    """End a job. Its slots are free as soon as the nodes have stopped their runners."""
    job = selectors.get_job(request.user, job_id)
    services.cancel_job(job=job, actor=request.user)
    return selectors.get_job(request.user, job_id)


@router.post("/jobs/{int:job_id}/resume", response=JobDetail)
def resume_job(request: ApiRequest, job_id: int, body: Annotated[ResumeIn | None, Body()] = None) -> Job:
    """Queue an ended job again: a federated one goes on after its last closed round.

    A failed or cancelled job needs no body. {"rounds": n} gives a federated job n rounds more, and a finished one needs them.
    """
    job = selectors.get_job(request.user, job_id)
    services.resume_job(job=job, actor=request.user, rounds=body.rounds if body else None)
    return selectors.get_job(request.user, job_id)


@router.post("/jobs/{int:job_id}/clone", response={201: JobDetail})
def clone_job(
    request: ApiRequest,
    response: HttpResponse,
    job_id: int,
    body: Annotated[dict[str, Any] | None, Body()] = None,
    key: Key = "",
) -> Status[Job]:
    """Submit a job's spec once more, in the same team. The body may hold changes to it, as a JSON merge patch."""
    origin = selectors.get_job(request.user, job_id)
    spec = _checked(merge_spec(plain_spec(origin), _spec_in(body or {})), team=origin.team)
    job = services.submit_job(team=origin.team, owner=request.user, spec=spec, cloned_from=origin, submission_key=key)
    return _created(job, response)


@router.get("/jobs/{int:job_id}/spec", response={200: dict[str, Any]})
def read_spec(request: ApiRequest, job_id: int, format: Literal["json", "yaml"] = "json") -> HttpResponse:
    """The job's spec, as it can be submitted again."""
    spec = plain_spec(selectors.get_job(request.user, job_id))
    if format == "yaml":
        text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
        return HttpResponse(text, content_type="application/yaml; charset=utf-8")
    return HttpResponse(json.dumps(spec, indent=2), content_type="application/json; charset=utf-8")


@router.get("/jobs/{int:job_id}/rounds", response=RoundPage)
def list_rounds(request: ApiRequest, job_id: int, page: Query[PageFilters]) -> dict[str, Any]:
    """The rounds of a federated job: who was asked, who returned, and why others did not."""
    refuse_unknown_parameters(request, PageFilters)
    return _page(selectors.rounds_of(selectors.get_job(request.user, job_id)), page.limit, page.offset)


@router.get("/jobs/{int:job_id}/events", response=EventPage)
def list_events(request: ApiRequest, job_id: int, page: Query[PageFilters]) -> dict[str, Any]:
    """Every change of state of the job and its parts, oldest first."""
    refuse_unknown_parameters(request, PageFilters)
    return _page(selectors.history_of(selectors.get_job(request.user, job_id)), page.limit, page.offset)


@router.get("/jobs/{int:job_id}/artifacts", response=list[ArtifactOut])
def list_artifacts(request: ApiRequest, job_id: int) -> list[Artifact]:
    """The files that the job has left, such as its final model."""
    return list(selectors.artifacts_of(selectors.get_job(request.user, job_id)).select_related("attempt"))


@router.get("/jobs/{int:job_id}/artifacts/{int:artifact_id}/download", response={200: bytes})
def download_artifact(request: ApiRequest, job_id: int, artifact_id: int) -> StreamingHttpResponse:
    """The bytes of an artifact."""
    job = selectors.get_job(request.user, job_id)
    artifact = get_object_or_404(selectors.artifacts_of(job), pk=artifact_id)
    return send_file(request, path_of(artifact.digest), name=artifact.name)


def _spec_in(body: dict[str, Any]) -> dict[str, Any]:
    """The spec in a body, which may be wrapped as {"spec": ...}: no field of a spec has that name."""
    if set(body) != {"spec"}:
        return body
    if not isinstance(body["spec"], dict):
        message = "'spec' holds the job's spec: send an object."
        raise Refusal(message, status=422, errors=[{"loc": ["spec"], "message": message}])
    return body["spec"]


def _checked(raw: dict[str, Any], *, team: Team) -> JobSpec:
    """Return the spec, or raise Refusal (422) that names each wrong field."""
    spec = selectors.check_spec(team=team, raw=raw)
    if isinstance(spec, JobSpec):
        return spec
    places = dict.fromkeys(".".join(map(str, problem.loc)) or "the spec" for problem in spec)
    raise Refusal(
        f"The spec needs corrections: {', '.join(places)}.",
        status=422,
        errors=[{"loc": list(problem.loc), "message": problem.message} for problem in spec],
    )


def _created(job: Job, response: HttpResponse) -> Status[Job]:
    response["Location"] = f"/api/v1/jobs/{job.pk}"
    return Status(201, job)


def _page(rows: QuerySet[Any], limit: int, offset: int) -> dict[str, Any]:
    return {"items": list(rows[offset : offset + limit]), "total": rows.count(), "limit": limit, "offset": offset}

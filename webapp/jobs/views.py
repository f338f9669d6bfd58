"""The job list and the job page. What one may not see is not there: 404."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from webapp.blobs.services import path_of
from webapp.core.downloads import send_file
from webapp.core.errors import Refusal
from webapp.core.http import Request
from webapp.jobs import page_selectors, round_selectors, selectors, services, simulated_selectors
from webapp.jobs.buffer_rows import buffer_of
from webapp.jobs.form_words import algorithm_of, traits_of
from webapp.jobs.forms import as_yaml
from webapp.jobs.kinds import is_simulated, runs_ranks
from webapp.jobs.local_privacy import local_privacy_of
from webapp.jobs.models import Artifact, Assignment, Job
from webapp.jobs.permissions import can_control, require_control
from webapp.jobs.presets import PRESETS
from webapp.jobs.privacy import privacy_of
from webapp.jobs.search import search_jobs
from webapp.jobs.secure_selectors import is_secure, secure_of
from webapp.teams.selectors import teams_of

JOBS_PER_PAGE = 50
ROUNDS_AT_FIRST = 12
MOST_ROUNDS = 1000
EVENTS_SHOWN = 200
LEGEND_ROWS = 12
"""Sources that stand below a chart, as in chart.js."""


@require_GET
@login_required
def job_list(request: Request) -> HttpResponse:
    """The jobs of one's teams. All filters are in the URL; htmx asks for the rows alone."""
    wish = request.GET
    state = wish.get("state", "")
    mode = wish.get("mode", "")
    found = search_jobs(
        request.user,
        states=[state] if state in Job.State.values else [],
        mode=mode if mode in ("federated", "distributed") else None,
        owner=request.user.username if wish.get("mine") else "",
        text=wish.get("q", "")[:200].strip(),
    ).select_related("owner", "team")
    page = Paginator(found, JOBS_PER_PAGE).get_page(wish.get("page"))
    context = {
        "page": page,
        "losses": page_selectors.latest_losses(page.object_list),
        "states": Job.State,
        "is_filtered": any(wish.get(key) for key in ("state", "mode", "q", "mine")),
    }
    if request.htmx:
        return render(request, "jobs/rows.html", context)
    can_create = bool(page_selectors.teams_to_submit_to(request.user))
    has_team = request.user.is_staff or teams_of(request.user).exists()
    return render(
        request, "jobs/list.html", {**context, "presets": PRESETS, "can_create": can_create, "has_team": has_team}
    )


@require_GET
@login_required
def job_page(request: Request, job_id: int) -> HttpResponse:
    job = selectors.get_job(request.user, job_id)
    parts: dict[str, Any] = {}
    for part in PARTS.values():
        parts |= part(request, job)
    return render(
        request,
        "jobs/page.html",
        {
            **parts,
            "job": job,
            "curves": page_selectors.expected_curves(job),
            "legend_rows": LEGEND_ROWS,
            "spec_yaml": as_yaml(job.spec.model_dump(mode="json", exclude_none=True)),
        },
    )


@require_GET
@login_required
def job_part(request: Request, job_id: int, part: str) -> HttpResponse:
    """One part of the job page, fetched anew when the socket says that it changed."""
    job = selectors.get_job(request.user, job_id)
    if part not in PARTS:
        raise Http404
    return render(request, f"jobs/parts/{part}.html", {"job": job, **PARTS[part](request, job)})


def _state(request: Request, job: Job) -> dict[str, Any]:
    attempt, federated = page_selectors.latest_attempt(job), job.spec.federated
    return {
        "attempt": attempt,
        "algorithm": algorithm_of(federated) if federated else "",
        "traits": traits_of(federated) if federated else [],
        "progress": page_selectors.progress_of(job, attempt),
        "loss": page_selectors.latest_losses([job]).get(job.pk),
        "can_control": can_control(request.user, job),
        "can_clone": bool(page_selectors.teams_to_submit_to(request.user)),
        "can_resume": job.state in (Job.State.FAILED, Job.State.CANCELLED),
        "can_go_on": job.state == Job.State.FINISHED and job.mode == "federated",
    }


def _rounds(request: Request, job: Job) -> dict[str, Any]:
    """The newest rounds and those that the viewer opened, with the clients of these."""
    limit = min(MOST_ROUNDS, _number(request.GET.get("rounds"), ROUNDS_AT_FIRST))
    opened = {_number(text, 0) for text in request.GET.getlist("open")[:10]}
    reads = simulated_selectors if is_simulated(job) else round_selectors
    ledger = reads.ledger_of(job)
    newest = list(ledger[: limit + 1])
    shown = newest[:limit]
    # What one reads does not go away because newer rounds came.
    if older := opened - {r.pk for r in shown}:
        shown += ledger.filter(pk__in=older)
    clients = {r.pk: reads.clients_of(r, job) for r in shown if r.pk in opened}
    return {
        "rounds": shown,
        "clients": clients,
        "rounds_limit": limit,
        "more_rounds": limit + ROUNDS_AT_FIRST if len(newest) > limit else None,
        "score": page_selectors.score_of(job),
        "server_measures": job.spec.federated is not None and job.spec.federated.server_data is not None,
        "buffer": buffer_of(job.spec),
        "is_private": job.spec.federated is not None and job.spec.federated.privacy is not None,
        "is_secure": is_secure(job),
        "is_locally_private": job.spec.federated is not None and job.spec.federated.local_privacy is not None,
        "is_simulated": is_simulated(job),
        "num_ranks": job.spec.num_nodes * job.spec.slots_per_node,
    }


def _labels(request: Request, job: Job) -> dict[str, Any]:
    """Who holds which labels; nothing for a distributed job and for a regression."""
    if job.mode != "federated" or page_selectors.score_of(job) == "r2":
        return {"picture": None}
    if is_simulated(job):
        return {"picture": simulated_selectors.labels_of(job), "is_simulated": True}
    return {"picture": round_selectors.labels_of(job, page_selectors.latest_attempt(job))}


def _privacy(request: Request, job: Job) -> dict[str, Any]:
    return {"privacy": privacy_of(job), "local": local_privacy_of(job)}


def _secure(request: Request, job: Job) -> dict[str, Any]:
    return {"secure": secure_of(job)}


def _nodes(request: Request, job: Job) -> dict[str, Any]:
    attempt = page_selectors.latest_attempt(job)
    assignments = attempt.assignments.select_related("node") if attempt else []
    return {"assignments": assignments, "runs_ranks": runs_ranks(job), "is_secure": is_secure(job)}


def _artifacts(request: Request, job: Job) -> dict[str, Any]:
    return {"artifacts": selectors.artifacts_of(job)}


def _history(request: Request, job: Job) -> dict[str, Any]:
    """What happened to the job and its attempts. The rounds stand in their table, the slots beside their nodes."""
    events = selectors.history_of(job)
    for subject in ("round:", "participation:"):
        events = events.exclude(subject__startswith=subject)
    events = events.exclude(
        subject__startswith="assignment:", new__in=(Assignment.State.RELEASING, Assignment.State.RELEASED)
    )
    return {"events": events.order_by("-id")[:EVENTS_SHOWN]}


PARTS: dict[str, Callable[[Request, Job], dict[str, Any]]] = {
    "state": _state,
    "rounds": _rounds,
    "labels": _labels,
    "privacy": _privacy,
    "secure": _secure,
    "nodes": _nodes,
    "artifacts": _artifacts,
    "history": _history,
}
"""Part of the page -> what its template needs."""


@require_POST
@login_required
def job_cancel(request: Request, job_id: int) -> HttpResponse:
    return _act(request, job_id, services.cancel_job, "Cancelled. Its nodes stop within seconds.")


@require_POST
@login_required
def job_resume(request: Request, job_id: int) -> HttpResponse:
    """Queue an ended job again; `rounds` is how many rounds more it trains, as a finished job needs them."""
    more = request.POST.get("rounds")
    if more is None:
        return _act(request, job_id, services.resume_job, "Queued again.")
    resume = partial(services.resume_job, rounds=_number(more.strip(), 0))
    return _act(request, job_id, resume, "Queued again, with more rounds.")


def _act(request: Request, job_id: int, service: Callable[..., object], done: str) -> HttpResponse:
    job = selectors.get_job(request.user, job_id)
    try:
        require_control(request.user, job)
        service(job=job, actor=request.user)
        messages.success(request, done)
    except Refusal as refusal:
        if refusal.status == 403:
            raise PermissionDenied(refusal.sentence) from None
        messages.error(request, refusal.sentence)
    return redirect("job-page", job_id)


@require_GET
@login_required
def job_spec(request: Request, job_id: int) -> HttpResponse:
    """The spec as a YAML file, as `trainmaster submit` takes it."""
    job = selectors.get_job(request.user, job_id)
    return HttpResponse(
        as_yaml(job.spec.model_dump(mode="json", exclude_none=True)),
        content_type="application/yaml; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="job-{job.pk}.yaml"'},
    )


@require_GET
@login_required
def artifact_download(request: Request, job_id: int, artifact_id: int) -> HttpResponseBase:
    job = selectors.get_job(request.user, job_id)
    artifact = get_object_or_404(Artifact, pk=artifact_id, job=job)
    try:
        return send_file(request, path_of(artifact.digest), name=f"job-{job.pk}-{artifact.name}")
    except FileNotFoundError:
        raise Http404("The file of this artifact is gone from the server's store.") from None


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 18 else default

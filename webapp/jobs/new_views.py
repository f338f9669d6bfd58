"""The New job page: the form made from the spec, checked as one types, sent once."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from trainer.sources import BUILTIN_SOURCES, SpecProblem
from trainer.spec import JobSpec
from webapp.core.errors import Refusal
from webapp.core.http import Request
from webapp.fleet.models import Node
from webapp.fleet.selectors import known_sources, usable_nodes
from webapp.jobs import page_selectors, selectors, services
from webapp.jobs.form_summary import shortage, summary
from webapp.jobs.form_values import values_of
from webapp.jobs.forms import SpecForm
from webapp.jobs.local_privacy import budget_warnings, forecast_local, told
from webapp.jobs.models import Job
from webapp.jobs.presets import PRESETS
from webapp.jobs.privacy import forecast_privacy
from webapp.jobs.server_data import sources_for
from webapp.teams.models import Team

BLANK = {"mode": "federated", "model": {"name": "mlp"}, "data": {"source": "digits"}}

NODES_NAMED = 20
"""Nodes that the form lists, for who wants to name some."""


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def job_new(request: Request) -> HttpResponse:
    teams = _teams(request)
    if request.method == "POST":
        return _submit(request, teams)
    cloned_from = None
    spec: Mapping[str, Any] = BLANK
    team = teams[0]
    if request.GET.get("clone"):
        cloned_from = selectors.get_job(request.user, _id(request.GET["clone"]))
        spec = cloned_from.spec.model_dump(mode="json", exclude_none=True)
        team = cloned_from.team if cloned_from.team in teams else team
    elif (preset := PRESETS.get(request.GET.get("preset", ""))) is not None:
        spec = preset.spec
    # Unnamed it is no spec yet; all else is filled in, so that one sees what would run.
    whole = JobSpec.model_validate({"name": "-", **spec}).model_dump(mode="json", exclude_none=True)
    if "name" not in spec:
        whole.pop("name")
    return _render(request, "jobs/new.html", values_of(whole), team, teams, cloned_from=cloned_from, is_new=True)


@require_POST
@login_required
def job_check(request: Request) -> HttpResponse:
    """The form again with what is wrong so far, as htmx asks for it after each change."""
    teams = _teams(request)
    return _render(request, "jobs/form/form.html", request.POST.dict(), _team(request, teams), teams, is_new=True)


@require_POST
@login_required
def job_example(request: Request, preset: str) -> HttpResponse:
    """Submit an example as it is."""
    if preset not in PRESETS:
        raise Http404
    team = _teams(request)[0]
    checked = selectors.check_spec(team=team, raw=PRESETS[preset].spec)
    if not isinstance(checked, JobSpec):
        messages.error(request, " ".join(problem.message for problem in checked))
        return redirect("job-list")
    job = services.submit_job(team=team, owner=request.user, spec=checked, submission_key=_key(request, checked))
    return redirect("job-page", job.pk)


@require_GET
@login_required
def job_clone(request: Request, job_id: int) -> HttpResponse:
    job = selectors.get_job(request.user, job_id)
    return redirect(f"/jobs/new/?clone={job.pk}")


def _submit(request: Request, teams: list[Team]) -> HttpResponse:
    team = _team(request, teams)
    values = request.POST.dict()
    cloned_from = selectors.get_job(request.user, _id(values["clone"])) if values.get("clone") else None
    checked = selectors.check_spec(team=team, raw=SpecForm(values).raw())
    if isinstance(checked, JobSpec):
        try:
            job = services.submit_job(
                team=team,
                owner=request.user,
                spec=checked,
                cloned_from=cloned_from,
                submission_key=_key(request, checked),
            )
        except Refusal as refusal:
            checked = [SpecProblem(loc=(), message=refusal.sentence)]
        else:
            return redirect("job-page", job.pk)
    return _render(request, "jobs/new.html", values, team, teams, problems=checked, cloned_from=cloned_from)


def _render(
    request: Request,
    template: str,
    values: Mapping[str, str],
    team: Team,
    teams: list[Team],
    *,
    problems: list[SpecProblem] | None = None,
    cloned_from: Job | None = None,
    is_new: bool = False,
) -> HttpResponse:
    """Draw the form. While it `is_new`, a field that must be filled and is not is left in peace until the form is sent."""
    form = SpecForm(values)
    checked = selectors.check_spec(team=team, raw=form.raw())
    spec = checked if isinstance(checked, JobSpec) else None
    if problems is None and not isinstance(checked, JobSpec):
        problems = [p for p in checked if not (is_new and p.loc == ("name",) and not values.get("name"))]
    form = SpecForm(values, problems)
    known = known_sources(team)
    source = next((k.schema for k in known if spec and k.schema.name == spec.data.source), None)
    nodes = usable_nodes(team)
    num_online = nodes.filter(state=Node.State.ONLINE).count()
    local = forecast_local(spec, source, nodes) if spec and source else None
    context = {
        "form": form,
        "sources": known,
        "server_sources": sources_for(values.get("data.source", "")),
        "builtin_sources": BUILTIN_SOURCES,
        "node_names": _names(nodes),
        "team": team,
        "teams": teams,
        "presets": PRESETS,
        "clone": cloned_from.pk if cloned_from else values.get("clone", ""),
        "cloned_from": cloned_from,
        "submission_key": values.get("submission_key") or uuid.uuid4().hex,
        "spec_yaml": form.yaml(spec),
        "summary": summary(spec, source, num_online) + told(local) if spec else [],
        "shortage": shortage(spec, num_online) if spec else "",
        "budget_warnings": budget_warnings(spec, source, nodes) if spec and source else [],
        "privacy": forecast_privacy(spec, source) if spec and source else None,
        "is_refused": not is_new and bool(problems),
        "is_ready": spec is not None,
    }
    return render(request, template, context, status=422 if problems and not is_new else 200)


def _names(nodes: QuerySet[Node]) -> list[str]:
    """The first names in order, and whether there are more."""
    names = list(nodes.order_by("name").values_list("name", flat=True)[: NODES_NAMED + 1])
    return names if len(names) <= NODES_NAMED else [*names[:NODES_NAMED], "and more"]


def _teams(request: Request) -> list[Team]:
    teams = page_selectors.teams_to_submit_to(request.user)
    if not teams:
        raise PermissionDenied(
            "You may watch jobs, not create them: ask a maintainer of your team for the role of a member."
        )
    return teams


def _team(request: Request, teams: list[Team]) -> Team:
    return next((team for team in teams if team.slug == request.POST.get("team")), teams[0])


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise Http404
    return int(text)


def _key(request: Request, spec: JobSpec) -> str:
    """What makes sending the same form twice one job. Gone back to and changed, it is another one."""
    nonce = request.POST.get("submission_key", "")[:64]
    return f"{nonce}:{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:32]}" if nonce else ""

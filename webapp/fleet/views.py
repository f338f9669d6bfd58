"""Nodes, for site administrators, and the data sources, for everyone. To others a node's page is not there: 404."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.core.errors import Refusal
from webapp.core.http import Request
from webapp.core.models import Transition
from webapp.fleet import selectors, services
from webapp.fleet.budgets import budgets_by_source, budgets_on
from webapp.fleet.models import EnrolmentToken, Node
from webapp.jobs import page_selectors as jobs_selectors

PAST_WORK_SHOWN = 20
EVENTS_SHOWN = 50


@require_GET
@login_required
def node_list(request: Request) -> HttpResponse:
    _require_administrator(request)
    nodes = list(selectors.nodes_visible_to(request.user))
    order = {Node.State.PENDING: 0, Node.State.ONLINE: 1, Node.State.OFFLINE: 2, Node.State.REVOKED: 3}
    nodes.sort(key=lambda node: (order[Node.State(node.state)], node.name))
    rows = _with_work(nodes)
    context = {
        "rows": rows,
        "num_online": sum(node.state == Node.State.ONLINE for node in nodes),
        "slots": sum(node.slots for node in nodes if node.state == Node.State.ONLINE),
        "slots_used": sum(row["slots_used"] for row in rows),
    }
    return render(request, "fleet/node_rows.html" if request.htmx else "fleet/node_list.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def node_add(request: Request) -> HttpResponse:
    """Make a one-time token and show, this once, the command that joins with it."""
    _require_administrator(request)
    if request.method != "POST":
        return render(request, "fleet/node_add.html", {})
    token, secret = services.create_enrolment_token(actor=request.user, preapproved="preapproved" in request.POST)
    command = f"trainmaster node join {settings.PUBLIC_URL} --token {secret}"
    response = render(request, "fleet/node_add.html", {"token": token, "command": command})
    response["Cache-Control"] = "no-store"
    return response


@require_GET
@login_required
def node_arrival(request: Request, token_id: int) -> HttpResponse:
    """Who came with this token. The page asks every two seconds until the node is in."""
    _require_administrator(request)
    token = get_object_or_404(EnrolmentToken.objects.select_related("node"), pk=token_id)
    return render(request, "fleet/arrival.html", {"token": token})


@require_GET
@login_required
def node_page(request: Request, node_id: UUID) -> HttpResponse:
    _require_administrator(request)
    node = get_object_or_404(selectors.nodes_visible_to(request.user), pk=node_id)
    context = {
        **_with_work([node])[0],
        "past_work": jobs_selectors.past_work_on(node)[:PAST_WORK_SHOWN],
        "events": Transition.objects.filter(thread=node.thread).order_by("-id")[:EVENTS_SHOWN],
        "strays": node.strays.order_by("-last_at"),
        "budgets": budgets_on(node),
    }
    return render(request, "fleet/node_body.html" if request.htmx else "fleet/node_page.html", context)


@require_POST
@login_required
def node_approve(request: Request, node_id: UUID) -> HttpResponse:
    return _act(request, node_id, services.approve_node, "{} is let in. It connects within seconds.")


@require_POST
@login_required
def node_refuse(request: Request, node_id: UUID) -> HttpResponse:
    return _act(request, node_id, services.refuse_node, "{} is refused.")


@require_POST
@login_required
def node_revoke(request: Request, node_id: UUID) -> HttpResponse:
    return _act(request, node_id, services.revoke_node, "{} is revoked: its credentials open nothing any more.")


@require_GET
@login_required
def source_list(request: Request) -> HttpResponse:
    """What one can train on: schema and counts. Rows never leave the nodes."""
    nodes = selectors.nodes_visible_to(request.user).filter(state__in=Node.APPROVED)
    context = {"sources": selectors.sources_visible_to(request.user), "budgets": budgets_by_source(nodes)}
    return render(request, "fleet/source_list.html", context)


def _act(request: Request, node_id: UUID, service: Callable[..., object], done: str) -> HttpResponse:
    _require_administrator(request)
    node = get_object_or_404(selectors.nodes_visible_to(request.user), pk=node_id)
    try:
        service(node=node, actor=request.user)
        messages.success(request, done.format(node.name))
    except Refusal as refusal:
        messages.error(request, refusal.sentence)
    return redirect("node-page", node_id)


def _require_administrator(request: Request) -> None:
    if not request.user.is_staff:
        raise Http404


def _with_work(nodes: list[Node]) -> list[dict[str, Any]]:
    held = jobs_selectors.work_on(nodes)
    return [
        {
            "node": node,
            "facts": node.facts,
            "work": held.get(str(node.pk), []),
            "slots_used": sum(assignment.slots for assignment in held.get(str(node.pk), [])),
        }
        for node in nodes
    ]

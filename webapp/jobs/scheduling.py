"""Start queued jobs: the plan is pure (`planner.plan`), applying it is one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, Sum
from django.utils import timezone
from pydantic import ValidationError

from trainer.federated.draw import label_shares
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from webapp.core.models import Transition
from webapp.fleet.models import Node
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.models import Assignment, Attempt, Job
from webapp.jobs.planner import Needs, Placement, PlanNode, QueuedJob, plan, why_waiting
from webapp.jobs.waiting import set_waiting, waiting


def schedule_jobs() -> None:
    """Start every queued job that fits, and say of the others why they wait.

    The lock on the queued rows lets one scheduler at a time read the free slots (SQLite: its transactions are immediate, so
    they queue up by themselves). A scheduler that was second finds the jobs started and the slots taken.
    """
    if not Job.objects.filter(state=Job.State.QUEUED).exists():
        return
    with transaction.atomic():
        now = timezone.now()
        jobs = {job.pk: job for job in Job.objects.select_for_update().filter(state=Job.State.QUEUED).order_by("pk")}
        before = _indices_before(jobs.values())
        queue = [queued for job in jobs.values() if (queued := _queued(job, before.get(job.pk, {})))]
        nodes, boots = read_nodes()
        placements = plan(queue, nodes, now=now)
        for job_id, gang in groupby(placements, key=lambda placement: placement.job_id):
            _start(jobs[job_id], list(gang), {node.id: node.name for node in nodes}, boots)
        left = _less(nodes, placements)
        started = {placement.job_id for placement in placements}
        for queued in queue:
            if queued.id not in started:
                what, then = why_waiting(queued, left)
                set_waiting(jobs[queued.id], waiting(what=what, since=queued.queued_at, then=then))


def needs_of(spec: JobSpec, team_id: int) -> Needs:
    """What a job of `team_id` with this spec asks of its nodes."""
    return Needs(
        num_nodes=spec.num_nodes,
        slots=spec.slots_per_node,
        team_id=team_id,
        source=None if spec.data.source in BUILTIN_SOURCES else spec.data.source,
        gpus=spec.resources.gpus_per_process * spec.slots_per_node,
        labels=frozenset(spec.resources.node_labels),
        names=spec.federated.clients.nodes if spec.federated else (),
        shares=tuple(label_shares(spec.federated.clients).items()) if spec.federated else (),
        unbounded_on=None if spec.federated and spec.federated.local_privacy else spec.data.source,
    )


def read_nodes() -> tuple[list[PlanNode], dict[str, str]]:
    """The approved nodes with their free slots, and the present boot of each by its id."""
    rows = (
        Node.objects.filter(state__in=[Node.State.ONLINE, Node.State.OFFLINE])
        .annotate(held=Sum("assignments__slots", filter=~Q(assignments__state=Assignment.State.RELEASED)))
        .prefetch_related("teams")
    )
    nodes, boots = [], {}
    for row in rows:
        facts = row.facts_json
        boots[str(row.pk)] = row.boot_id
        nodes.append(
            PlanNode(
                id=str(row.pk),
                name=row.name,
                slots=row.slots,
                free_slots=max(0, row.slots - (row.held or 0)),
                online=row.state == Node.State.ONLINE,
                num_gpus=len(facts.get("gpus", [])),
                labels=frozenset(row.labels),
                team_ids=frozenset(team.pk for team in row.teams.all()),
                sources=frozenset(source["name"] for source in facts.get("sources", [])),
                budgets=frozenset(budget["source"] for budget in facts.get("budgets", [])),
            )
        )
    return nodes, boots


def _indices_before(jobs: Iterable[Job]) -> dict[int, dict[str, int]]:
    """Job id -> node id -> client index in its last attempt, of those jobs that go on from a closed round."""
    going_on = [job.pk for job in jobs if job.mode == "federated" and job.progress_done]
    if not going_on:
        return {}
    newer = Attempt.objects.filter(job=OuterRef("attempt__job"), number__gt=OuterRef("attempt__number"))
    held = Assignment.objects.filter(~Exists(newer), attempt__job__in=going_on)
    indices: dict[int, dict[str, int]] = {}
    for job_id, node_id, index in held.values_list("attempt__job", "node", "index"):
        indices.setdefault(job_id, {})[str(node_id)] = index
    return indices


def _queued(job: Job, before: dict[str, int]) -> QueuedJob | None:
    """The job as the planner sees it; None where an update of the product no longer understands its spec."""
    try:
        return QueuedJob(job.pk, needs_of(job.spec, job.team_id), job.state_changed_at, before)
    except ValidationError:
        job.move_to(
            Job.State.FAILED,
            "This job's spec is not valid in this version: clone it and correct the marked fields.",
            waiting_for=None,
        )
        tell_browsers(job, "state")
        return None


def _start(job: Job, gang: list[Placement], names: dict[str, str], boots: dict[str, str]) -> None:
    reason = f"Started on {', '.join(names[placement.node_id] for placement in gang)}."
    if not job.move_to(Job.State.RUNNING, reason, waiting_for=None):
        return  # cancelled, or started by another scheduler, first
    last = job.attempts.order_by("-number").first()
    attempt = Attempt.objects.create(
        job=job,
        number=last.number + 1 if last else 1,
        state=Attempt.State.RUNNING,
        state_reason=reason,
        # A federated job goes on from the last closed round of the attempt before.
        weights_digest=last.weights_digest if last else "",
        weights_size_bytes=last.weights_size_bytes if last else 0,
        memory_digest=last.memory_digest if last else "",
    )
    Transition.objects.create(
        thread=job.thread, subject=f"attempt:{attempt.pk}", new=Attempt.State.RUNNING, reason=reason
    )
    Assignment.objects.bulk_create(
        Assignment(
            attempt=attempt,
            node_id=placement.node_id,
            index=placement.index,
            slots=placement.slots,
            state=Assignment.State.ACTIVE,
            boot_id=boots[placement.node_id],
        )
        for placement in gang
    )
    request("advance_attempt", attempt.pk)
    tell_browsers(job, "state")


def _less(nodes: list[PlanNode], placements: list[Placement]) -> list[PlanNode]:
    """The nodes as they are after `placements`."""
    taken: dict[str, int] = {}
    for placement in placements:
        taken[placement.node_id] = taken.get(placement.node_id, 0) + placement.slots
    return [replace(node, free_slots=node.free_slots - taken.get(node.id, 0)) for node in nodes]

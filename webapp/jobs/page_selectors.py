"""What the job list and the job page show beside the rows themselves, at a fixed number of queries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import User
from django.db.models import Count, QuerySet
from django.utils import timezone

from trainer.simulation.messages import MOST_CURVES
from trainer.sources import BUILTIN_SOURCES, server_has_test_rows
from webapp.fleet.models import Node
from webapp.fleet.selectors import known_sources
from webapp.jobs.kinds import is_simulated
from webapp.jobs.models import Assignment, Attempt, Job
from webapp.teams.models import Membership, Team
from webapp.telemetry.models import Series

LOSS = "train/loss"
WHOLE_JOB = ("aggregate", "rank 0")
"""Sources that speak for a whole job: the weighted mean of a federated one, rank 0 of a distributed one."""


def teams_to_submit_to(user: User) -> list[Team]:
    """The teams that `user` may give a job to, one's own first."""
    roles = (Membership.Role.MEMBER, Membership.Role.MAINTAINER)
    # One filter, so that the role is the user's own and not somebody else's in the team.
    own = list(Team.objects.filter(memberships__user=user, memberships__role__in=roles))
    return own + list(Team.objects.exclude(pk__in=[team.pk for team in own])) if user.is_staff else own


def latest_losses(jobs: Iterable[Job]) -> dict[int, float]:
    """Job id -> its newest training loss, where there is one. One query."""
    rows = Series.objects.filter(attempt__job__in=list(jobs), name=LOSS, source__in=WHOLE_JOB, last_value__isnull=False)
    # In order of attempts, so that the last one stays.
    found = rows.order_by("attempt_id").values_list("attempt__job_id", "last_value")
    return {job_id: value for job_id, value in found if value is not None}


def latest_attempt(job: Job) -> Attempt | None:
    return job.attempts.order_by("-number").first()


def score_of(job: Job) -> str:
    """The metric that tells quality beside the loss: r2 for numbers, accuracy for classes."""
    spec = job.spec
    schema = BUILTIN_SOURCES.get(spec.data.source)
    if schema is None and spec.training.loss == "auto":
        schema = next((k.schema for k in known_sources(job.team) if k.schema.name == spec.data.source), None)
    is_regression = spec.training.loss == "mse" or (schema is not None and schema.task == "regression")
    return "r2" if is_regression else "accuracy"


def expected_curves(job: Job) -> dict[str, int]:
    """Metric -> number of its sources, in the order of the page: what came of an ended job, else what is going to come.

    The page keeps room for these charts, so that nothing moves when they fill.
    """
    if job.is_terminal:
        rows = Series.objects.filter(attempt__job=job).values_list("name").annotate(Count("source", distinct=True))
        found = dict(rows)
        return {name: found[name] for name in sorted(found, key=_chart_order)}
    measures = ("loss", score_of(job))
    if job.spec.is_simulated:
        clients = job.spec.federated.clients.total if job.spec.federated else 0
        nums = {"server": 1, "train": 1 + (clients if clients <= MOST_CURVES else 0)}
        return {f"{part}/{measure}": num for measure in measures for part, num in nums.items()}
    if job.spec.federated:
        # The aggregate stands beside the clients; of the weights as they went out there is nothing else.
        nums = {"global": 1, "test": 1 + job.spec.num_nodes, "train": 1 + job.spec.num_nodes}
        if job.spec.federated.server_data:
            nums = {"global": 1, "server": 1} | nums
        if server_has_test_rows(job.spec):  # then no client measures the weights that went out
            del nums["global"]
        return {f"{part}/{measure}": num for measure in measures for part, num in nums.items()}
    # Each rank logs the loss of its steps; rank 0 logs the rest for all.
    num_ranks = job.spec.num_nodes * job.spec.slots_per_node
    names = [f"{part}/{measure}" for measure in measures for part in ("test", "train")]
    return {name: num_ranks if name == LOSS else 1 for name in names}


def _chart_order(name: str) -> tuple[int, str]:
    """As `byImportance` of curves.js: losses, then scores, then the rest."""
    measure = name.rpartition("/")[2]
    return {"loss": 0, "accuracy": 1, "r2": 1}.get(measure, 2), name


@dataclass(frozen=True)
class Progress:
    """How far a job is. `seconds_left` is None where there is nothing yet to judge by, or nothing left to do."""

    done: int
    total: int
    unit: str
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None
    """Since the latest attempt began, until it ended or now."""
    seconds_left: float | None


def progress_of(job: Job, attempt: Attempt | None) -> Progress:
    """Return the progress, with the time left at the pace of the present attempt."""
    now = timezone.now()
    started = attempt.started_at if attempt else None
    ended = attempt.ended_at if attempt else None
    seconds = ((ended or now) - started).total_seconds() if started else None
    left = None
    if attempt and seconds and job.state == Job.State.RUNNING:
        first = attempt.rounds.order_by("number").values_list("number", flat=True).first()
        # A simulation has no row of the round that is under way.
        done_before = first or (job.progress_done + 1 if is_simulated(job) else 1)
        done_here = job.progress_done - (done_before - 1)
        if done_here > 0:
            left = seconds / done_here * (job.progress_total - job.progress_done)
    unit = "rounds" if job.mode == "federated" else "epochs"
    return Progress(job.progress_done, job.progress_total, unit, started, ended, seconds, left)


def work_on(nodes: Iterable[Node]) -> dict[str, list[Assignment]]:
    """Node id -> what holds slots on it now, with the jobs. One query."""
    held: dict[str, list[Assignment]] = {}
    rows = Assignment.objects.filter(node__in=list(nodes)).exclude(state=Assignment.State.RELEASED)
    for assignment in rows.select_related("attempt__job").order_by("attempt__job_id"):
        held.setdefault(str(assignment.node_id), []).append(assignment)
    return held


def past_work_on(node: Node) -> QuerySet[Assignment]:
    """What ran on a node before, newest first."""
    done = node.assignments.filter(state=Assignment.State.RELEASED)
    return done.select_related("attempt__job__owner", "attempt__job__team").order_by("-id")

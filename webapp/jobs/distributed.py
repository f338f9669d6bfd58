"""The ranks of a distributed job: send them out together, wait for all, and leave the model. Simulations send theirs alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from trainer.protocol import RunRanks
from trainer.simulation.messages import RoundStart
from trainer.spec import JobSpec
from webapp.fleet.services import send_to_node
from webapp.jobs.attempts import end_attempt, lose_attempt, why_gone
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.federated import MODEL_NAME
from webapp.jobs.models import Assignment, Attempt, Job
from webapp.telemetry.models import Series

SEND_AGAIN_AFTER = timedelta(seconds=10)
"""When a node is sent its ranks again, if it neither started them nor says that it works on the attempt."""
TAKEN_WITHIN = timedelta(seconds=45)
"""How long such a node may take. Its gang waits 60 s for it and then fails for good; lost before that, the job tries again."""
DROPPED_AFTER = timedelta(seconds=10)
"""How long the heartbeats of a node may leave out ranks that it had started. A node's messages are kept in order, so its
`finished` or `failed` is stored no later than the first such heartbeat; the time is for one that had to be sent again."""


def advance_distributed(attempt: Attempt) -> None:
    """Do the next thing that is due for a running distributed attempt. `attempt.job` is loaded."""
    assignments = list(attempt.assignments.select_related("node"))
    if all(a.state == Assignment.State.DONE for a in assignments):
        _finish(attempt)
    else:
        tend_ranks(attempt, assignments)


def tend_ranks(attempt: Attempt, assignments: list[Assignment], start: Callable[[], RoundStart] | None = None) -> bool:
    """Send out the ranks that have not been sent, and end an attempt of which some broke or are gone. False ended it.

    `start` says where a simulation goes on; it is asked only when a message is due.
    """
    now = timezone.now()
    failed = [a for a in assignments if a.state == Assignment.State.FAILED]
    if failed:
        reason = " ".join(a.state_reason for a in failed)
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
        return False
    if gone := " ".join(_reasons(assignments, now)):
        lose_attempt(attempt=attempt, reason=gone)
        return False
    if due := [a for a in assignments if a.state == Assignment.State.ACTIVE and _send_is_due(a, now)]:
        spec, begin = attempt.job.spec, start() if start else None
        for assignment in due:
            _send(assignment, attempt, spec, len(assignments), begin, now)
    return True


def _reasons(assignments: list[Assignment], now: datetime) -> list[str]:
    """Why nodes that still have work to do cannot do it."""
    active = [a for a in assignments if a.state == Assignment.State.ACTIVE]
    return [reason for a in active if (reason := why_gone(a.node, a.boot_id) or _why_dropped(a, now))]


def _why_dropped(assignment: Assignment, now: datetime) -> str:
    """Why a node that is there does not work on its ranks all the same; empty where it does, or may yet.

    Counted to the node's last heartbeat, not to now: while nobody hears it, its word may be under way.
    """
    node, seen = assignment.node, assignment.node.last_seen_at
    named = assignment.attempt_id in node.running_attempts
    if assignment.started_at is None:
        late = not named and seen is not None and seen - assignment.state_changed_at >= TAKEN_WITHIN
        return f"{node.name} did not take its ranks within {TAKEN_WITHIN.seconds} s." if late else ""
    if named != (assignment.unnamed_since is None):
        assignment.unnamed_since = None if named else now
        Assignment.objects.filter(pk=assignment.pk).update(unnamed_since=assignment.unnamed_since)
    since = assignment.unnamed_since
    if since is None or seen is None or seen - since < DROPPED_AFTER:
        return ""
    return f"{node.name} stopped working on its ranks without a report: look at its agent's log."


def _send_is_due(assignment: Assignment, now: datetime) -> bool:
    if assignment.sent_at is None:
        return True
    silent = assignment.started_at is None and assignment.attempt_id not in assignment.node.running_attempts
    return silent and now - assignment.sent_at >= SEND_AGAIN_AFTER


def _send(
    assignment: Assignment, attempt: Attempt, spec: JobSpec, num_groups: int, start: RoundStart | None, now: datetime
) -> None:
    """Send the node its ranks. Of two callers, one does; a node that has them already ignores the repeat."""
    same = Assignment.objects.filter(pk=assignment.pk, state=Assignment.State.ACTIVE, sent_at=assignment.sent_at)
    message = RunRanks(
        job_id=attempt.job_id,
        attempt_id=attempt.pk,
        spec=spec,
        group_rank=assignment.index,
        num_groups=num_groups,
        start=start,
    )
    with transaction.atomic():
        if same.update(sent_at=now) == 1:
            send_to_node(node=assignment.node, message=message)


def _finish(attempt: Attempt) -> None:
    """End the job well, if rank 0 has delivered the model."""
    with transaction.atomic():
        if not attempt.artifacts.filter(name=MODEL_NAME).exists():
            reason = "All ranks ended well, but rank 0 delivered no model: look at its log."
            end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
        elif end_attempt(attempt=attempt, state=Attempt.State.FINISHED, reason="All ranks ended well."):
            assert attempt.job.spec.distributed is not None
            Job.objects.filter(pk=attempt.job_id).update(progress_done=attempt.job.spec.distributed.epochs)


def record_epochs(attempts: list[Attempt]) -> None:
    """Set the progress of running distributed jobs: rank 0 reports test/loss once at the end of each epoch."""
    epochs = Series.objects.filter(attempt__in=attempts, name="test/loss", source="rank 0")
    done = dict(epochs.values_list("attempt_id", "count"))
    for attempt in attempts:
        num = min(done.get(attempt.pk, 0), attempt.job.progress_total)
        if num != attempt.job.progress_done:
            Job.objects.filter(pk=attempt.job_id, state=Job.State.RUNNING).update(progress_done=num)
            tell_browsers(attempt.job, "state")

"""How an attempt ends, and how its slots become free again. Torch-free: a cancel acts without the conductor."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from trainer.protocol import StopAttempt
from webapp.fleet.models import Node
from webapp.fleet.services import send_to_node
from webapp.jobs import garbage
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Round
from webapp.jobs.secure import forget_masks

MAX_ATTEMPTS = 3
"""Attempts that may lose a node in a row before the job fails."""
STOP_AGAIN_AFTER = timedelta(seconds=3)
LEFT_OVER_AFTER = timedelta(seconds=5)
"""How long a node may name an attempt in its heartbeats after it was let off it."""

_JOB_STATES = {
    Attempt.State.FINISHED: Job.State.FINISHED,
    Attempt.State.FAILED: Job.State.FAILED,
    Attempt.State.CANCELLED: Job.State.CANCELLED,
}


def end_attempt(*, attempt: Attempt, state: Attempt.State, reason: str, actor: str = "") -> bool:
    """End a running attempt and its job alike, and stop its nodes. False where another worker ended it first."""
    return _end(attempt, state, _JOB_STATES[state], reason, reason, actor=actor)


def lose_attempt(*, attempt: Attempt, reason: str) -> bool:
    """End an attempt whose nodes are gone. Its job queues again, until MAX_ATTEMPTS in a row ended like this."""
    job = attempt.job
    if job.num_retries + 1 >= MAX_ATTEMPTS:
        last = f"{reason} The last {MAX_ATTEMPTS} attempts ended like this: resume the job when its nodes are well."
        return end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=last)
    again = f"Attempt {attempt.number} ended: {reason} Trying again."
    retries = job.num_retries + 1
    with transaction.atomic():
        if not _end(attempt, Attempt.State.FAILED, Job.State.QUEUED, reason, again, num_retries=retries):
            return False
        request("schedule_jobs")
    return True


def _end(
    attempt: Attempt,
    state: Attempt.State,
    job_state: Job.State,
    reason: str,
    job_reason: str,
    *,
    actor: str = "",
    **job_fields: int,
) -> bool:
    """Move the attempt and its job together, or neither. The rows are taken in this order everywhere."""
    with transaction.atomic():
        moved = attempt.move_to(state, reason, actor=actor, ended_at=timezone.now()) and attempt.job.move_to(
            job_state, job_reason, actor=actor, waiting_for=None, **job_fields
        )
        if not moved:  # another worker was first, or our copy of a row was old
            transaction.set_rollback(True)
            return False
        _wind_up(attempt, reason)
    return True


def _wind_up(attempt: Attempt, reason: str) -> None:
    """Close the ledger of the round that was under way, and begin to free the slots."""
    for round_ in attempt.rounds.filter(state__in=Round.UNDER_WAY):
        round_.attempt = attempt
        round_.move_to(Round.State.FAILED, reason, closed_at=timezone.now())
        drop_participations(round_, lambda _: f"The attempt ended first: {reason}")
        updates = Participation.objects.filter(Q(round=round_) | Q(counted_in=round_)).exclude(update_digest="")
        garbage.delete_on_commit(list(updates.values_list("update_digest", flat=True)))
        forget_masks(round_)
    # Under FedBuff clients may be at work on rounds that have closed.
    for round_ in attempt.rounds.filter(
        state=Round.State.CLOSED, participations__state=Participation.State.ASKED
    ).distinct():
        round_.attempt = attempt
        drop_participations(round_, lambda _: f"The attempt ended first: {reason}")
        garbage.delete_on_commit([round_.weights_digest])
    release_assignments(attempt)
    tell_browsers(attempt.job, "state", "rounds")


def drop_participations(round_: Round, why: Callable[[Participation], str]) -> None:
    """Move those that were asked and are not in to LATE, each with its reason. A lost one stays lost, and keeps why.

    Call it in the transaction that ends the round: whoever lets one in or asks one anew holds the round open for it
    (`rounds.hold_open`), so nobody is asked behind this.
    """
    for participation in round_.participations.filter(state=Participation.State.ASKED):
        participation.round = round_
        participation.move_to(Participation.State.LATE, why(participation))


def release_assignments(attempt: Attempt) -> None:
    """Tell the nodes of an ended attempt to stop, and free the slots of those that have, or that are gone.

    A node that is gone gets its stop as well: its runner may live on behind a broken connection, and the message waits.
    """
    now = timezone.now()
    freed = False
    for assignment in attempt.assignments.select_related("node").exclude(state=Assignment.State.RELEASED):
        assignment.attempt = attempt
        if assignment.state != Assignment.State.RELEASING:
            if assignment.move_to(Assignment.State.RELEASING, sent_at=now):
                _send_stop(assignment)
        elif _stop_is_due(assignment, now, STOP_AGAIN_AFTER):
            _send_stop(assignment)
        if assignment.state == Assignment.State.RELEASING and (gone := why_gone(assignment.node, assignment.boot_id)):
            freed |= assignment.move_to(Assignment.State.RELEASED, gone)
    if freed:
        request("schedule_jobs")


def stop_leftovers() -> None:
    """Stop what nodes still run of attempts that they were let off, as they say themselves.

    A node that was out of reach lost its slots without a word, and its stop may have been lost as well.
    """
    working = {node.pk: node for node in Node.objects.filter(state=Node.State.ONLINE).exclude(running_attempts=[])}
    if not working:
        return
    now = timezone.now()
    named = {attempt_id for node in working.values() for attempt_id in node.running_attempts if 0 < attempt_id < 2**63}
    let_off = Assignment.objects.filter(
        node__in=list(working),
        attempt__in=named,
        state=Assignment.State.RELEASED,
        state_changed_at__lt=now - LEFT_OVER_AFTER,
    )
    for assignment in let_off:
        assignment.node = working[assignment.node_id]
        if assignment.attempt_id in assignment.node.running_attempts and _stop_is_due(assignment, now, LEFT_OVER_AFTER):
            _send_stop(assignment)


def why_gone(node: Node, boot_id: str) -> str:
    """Why what the node began as `boot_id` cannot be running any more, as far as the server knows; empty where it may."""
    if node.state != Node.State.ONLINE:
        return node.state_reason or f"{node.name} is {node.state}."
    if node.boot_id != boot_id:
        return f"{node.name} restarted."
    return ""


def _stop_is_due(assignment: Assignment, now: datetime, pause: timedelta) -> bool:
    """Whether to repeat the stop; of two callers, one repeats it."""
    if assignment.sent_at is not None and now - assignment.sent_at < pause:
        return False
    same = Assignment.objects.filter(pk=assignment.pk, state=assignment.state, sent_at=assignment.sent_at)
    return same.update(sent_at=now) == 1


def _send_stop(assignment: Assignment) -> None:
    if assignment.node.state != Node.State.REVOKED:
        send_to_node(node=assignment.node, message=StopAttempt(attempt_id=assignment.attempt_id))

"""How an attempt ends, and how its slots become free again. Torch-free: a cancel acts without the conductor."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from trainer.protocol import StopAttempt
from webapp.core.models import Transition
from webapp.fleet.models import Node
from webapp.fleet.services import send_to_node
from webapp.jobs import garbage
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Round

MAX_ATTEMPTS = 3
"""Attempts that may lose a node in a row before the job fails."""
STOP_AGAIN_AFTER = timedelta(seconds=3)

_JOB_STATES = {
    Attempt.State.FINISHED: Job.State.FINISHED,
    Attempt.State.FAILED: Job.State.FAILED,
    Attempt.State.CANCELLED: Job.State.CANCELLED,
}


def end_attempt(*, attempt: Attempt, state: Attempt.State, reason: str, actor: str = "") -> bool:
    """End a running attempt and its job alike, and stop its nodes. False where another worker ended it first."""
    with transaction.atomic():
        if not attempt.move_to(state, reason, actor=actor, ended_at=timezone.now()):
            return False
        attempt.job.move_to(_JOB_STATES[state], reason, actor=actor, waiting_for=None)
        _wind_up(attempt, reason)
    return True


def lose_attempt(*, attempt: Attempt, reason: str) -> bool:
    """End an attempt whose nodes are gone. Its job queues again, until MAX_ATTEMPTS in a row ended like this."""
    job = attempt.job
    if job.num_retries + 1 >= MAX_ATTEMPTS:
        last = f"{reason} The last {MAX_ATTEMPTS} attempts ended like this: resume the job when its nodes are well."
        return end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=last)
    with transaction.atomic():
        if not attempt.move_to(Attempt.State.FAILED, reason, ended_at=timezone.now()):
            return False
        job.move_to(
            Job.State.QUEUED,
            f"Attempt {attempt.number} ended: {reason} Trying again.",
            num_retries=job.num_retries + 1,
            waiting_for=None,
        )
        _wind_up(attempt, reason)
        request("schedule_jobs")
    return True


def _wind_up(attempt: Attempt, reason: str) -> None:
    """Close the ledger of the round that was under way, and begin to free the slots."""
    for round_ in attempt.rounds.filter(state__in=[Round.State.OPEN, Round.State.CLOSING]):
        round_.attempt = attempt
        round_.move_to(Round.State.FAILED, reason, closed_at=timezone.now())
        participations = list(round_.participations.all())
        drop_participations(round_, participations, f"The attempt ended first: {reason}")
        garbage.delete_on_commit([p.update_digest for p in participations if p.update_digest])
    release_assignments(attempt)
    tell_browsers(attempt.job, "state", "rounds")


def drop_participations(round_: Round, participations: list[Participation], reason: str) -> None:
    """Move those that are still out to LATE. One that returned at this moment keeps its state."""
    for participation in participations:
        if participation.state in (Participation.State.ASKED, Participation.State.LOST):
            participation.round = round_
            participation.move_to(Participation.State.LATE, reason)


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
        elif _stop_is_due(assignment, now):
            _send_stop(assignment)
        if assignment.state == Assignment.State.RELEASING and (gone := why_gone(assignment)):
            freed |= assignment.move_to(Assignment.State.RELEASED, gone)
    if freed:
        request("schedule_jobs")


def why_gone(assignment: Assignment) -> str:
    """Why the work of `assignment` cannot be running any more, as far as the server knows; empty where it may."""
    node = assignment.node
    if node.state == Node.State.REVOKED:
        return f"{node.name} was revoked."
    if node.state != Node.State.ONLINE:
        return f"{node.name} stopped answering."
    if node.boot_id != assignment.boot_id:
        return f"{node.name} restarted."
    return ""


def _stop_is_due(assignment: Assignment, now: datetime) -> bool:
    """Whether to repeat the stop; of two callers, one repeats it."""
    if assignment.sent_at is not None and now - assignment.sent_at < STOP_AGAIN_AFTER:
        return False
    same = Assignment.objects.filter(pk=assignment.pk, state=Assignment.State.RELEASING, sent_at=assignment.sent_at)
    return same.update(sent_at=now) == 1


def _send_stop(assignment: Assignment) -> None:
    if assignment.node.state != Node.State.REVOKED:
        send_to_node(node=assignment.node, message=StopAttempt(attempt_id=assignment.attempt_id))


def note_start(round_: Round, reason: str = "") -> None:
    """Write the first row of a round's history."""
    Transition.objects.create(
        thread=round_.thread, subject=f"round:{round_.pk}", new=round_.state, reason=reason, at=round_.opened_at
    )

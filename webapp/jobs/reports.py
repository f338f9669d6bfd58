"""What nodes report through their streams. Each report is idempotent and fenced; the state machine turns elsewhere.

Runs inside ingest's transaction: it touches assignments and participations only, never a job, attempt or round. So it
waits for no lock that the conductor holds while that waits for a feed of ingest's.
"""

from __future__ import annotations

from django.utils import timezone

from trainer.protocol import RunReport
from webapp.jobs.buffer_rows import buffer_of, let_go
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.door import count_stray
from webapp.jobs.kinds import runs_ranks
from webapp.jobs.models import Assignment, Attempt, Participation, Round, Stray


def record_report(*, node_id: str, report: RunReport) -> None:
    """Record what a node says of its own part in an attempt, and ask the conductor to act on it.

    Reports of somebody else's attempt, and of one that has ended, change nothing and are counted.
    """
    assignment = (
        Assignment.objects.select_related("attempt__job", "node")
        .filter(attempt_id=report.attempt_id, node_id=node_id)
        .first()
    )
    if assignment is None:
        sentence = f"It reported '{report.kind}' for attempt {report.attempt_id}, in which it has no part."
        count_stray(node_id=node_id, kind=Stray.Kind.REPORT, reason=sentence)
    elif report.kind == "released":
        _record_released(assignment)
    elif report.kind == "model_kept":
        Assignment.objects.filter(pk=assignment.pk, model_kept_at=None).update(model_kept_at=timezone.now())
    elif assignment.attempt.state != Attempt.State.RUNNING:
        sentence = f"It reported '{report.kind}' for attempt {report.attempt_id}, which has ended."
        count_stray(node_id=node_id, kind=Stray.Kind.REPORT, reason=sentence)
    elif runs_ranks(assignment.attempt.job):
        _record_ranks(assignment, report)
    else:
        _record_client(assignment, report)


def _record_released(assignment: Assignment) -> None:
    """Free the slots. While the attempt runs it is an echo of another time, and means nothing."""
    if assignment.state == Assignment.State.RELEASING:
        assignment.move_to(Assignment.State.RELEASED, f"{assignment.node.name} stopped.")
        request("schedule_jobs")
        tell_browsers(assignment.attempt.job, "state")


def _record_client(assignment: Assignment, report: RunReport) -> None:
    """A client of a federated job: what it reports concerns the round that it names, else the open one."""
    participations = Participation.objects.select_related("round").filter(
        assignment=assignment, state__in=Participation.OUT
    )
    is_buffered = buffer_of(assignment.attempt.job.spec) is not None
    if not is_buffered:
        participations = participations.filter(round__state=Round.State.OPEN)
    if report.round is not None:
        participations = participations.filter(round__number=report.round)
    if report.kind == "started":
        participations.filter(started_at=None).update(started_at=timezone.now())
        return
    if report.kind == "progress":
        participations.update(progress_at=timezone.now())  # the server's clock: deadlines are counted by it
        return
    if report.kind == "finished":
        return  # a client's part ends with its update, at the door
    state = Participation.State.FAILED if report.kind == "failed" else Participation.State.REFUSED
    for participation in participations:
        participation.round.attempt = assignment.attempt
        participation.move_to(state, report.text or f"{assignment.node.name} gave no reason.")
        if is_buffered:
            let_go(participation)
        request("advance_attempt", report.attempt_id)
        tell_browsers(assignment.attempt.job, "rounds")


def _record_ranks(assignment: Assignment, report: RunReport) -> None:
    """A group of ranks of a distributed job or of a simulation."""
    if report.kind == "started":
        Assignment.objects.filter(pk=assignment.pk, started_at=None).update(started_at=timezone.now())
        tell_browsers(assignment.attempt.job, "state")
        return
    if report.kind == "progress":
        return  # ranks show theirs by their points
    if assignment.state != Assignment.State.ACTIVE:
        return  # settled before: the report was delivered again
    if report.kind == "finished":
        assignment.move_to(Assignment.State.DONE)
    else:
        verb = "failed" if report.kind == "failed" else "refused"
        assignment.move_to(
            Assignment.State.FAILED, f"{assignment.node.name} {verb}: {report.text or 'no reason given.'}"
        )
    request("advance_attempt", report.attempt_id)

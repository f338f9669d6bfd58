"""The road of a simulation: a federated job whose nodes run ranks, which train virtual clients and tell of whole rounds.

The weights begin, and the model ends, as in any federated job (`webapp.jobs.federated`). Between them nodes are sent out and
missed as the ranks of a distributed job (`webapp.jobs.distributed`). What rank 0 tells of comes through
`webapp.jobs.simulated_rounds`; a new attempt goes on from the last round that is recorded.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from trainer.federated.early_stop import worth_keeping
from trainer.simulation.messages import RoundStart
from trainer.spec import JobSpec
from webapp.blobs import services as blobs
from webapp.jobs.attempts import end_attempt, lose_attempt, why_gone
from webapp.jobs.closing import measured_before
from webapp.jobs.distributed import tend_ranks
from webapp.jobs.federated import find_weights, finish_federated, take_weights
from webapp.jobs.models import Assignment, Attempt
from webapp.jobs.rounds import federated_of
from webapp.jobs.settling import WORTH_SAYING_AFTER
from webapp.jobs.waiting import set_waiting, waiting

WOUND_UP_WITHIN = timedelta(seconds=15)
"""How long after its last round the nodes may take to say that their ranks have ended; then the job ends without their word."""


def advance_simulation(attempt: Attempt) -> None:
    """Do the next thing that is due for a running attempt of a simulation. `attempt.job` is loaded."""
    assignments = list(attempt.assignments.select_related("node"))
    # After the assignments: who says that its ranks have ended told of all rounds before.
    attempt = Attempt.objects.select_related("job").get(pk=attempt.pk)
    job, now = attempt.job, timezone.now()
    if attempt.state != Attempt.State.RUNNING:
        return
    spec, number = job.spec, job.progress_done + 1
    if number > job.progress_total:
        if _is_wound_up(attempt, assignments, now):
            finish_federated(attempt, spec)
    elif all(a.state == Assignment.State.DONE for a in assignments):
        reason = (
            f"All ranks ended well, but round {number} of {job.progress_total} never came: look at the log of rank 0."
        )
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
    elif _begin(attempt, spec, assignments) and tend_ranks(attempt, assignments, lambda: _start_of(attempt, spec)):
        _watch(attempt, spec, assignments, now)


def _begin(attempt: Attempt, spec: JobSpec, assignments: list[Assignment]) -> bool:
    """See to the weights that the ranks start from, until all have been sent. False where they must not start now."""
    if all(assignment.sent_at for assignment in assignments):
        return True
    is_fresh, number = not attempt.weights_digest, attempt.job.progress_done + 1
    if not find_weights(attempt, spec, number):
        return False
    with transaction.atomic():
        return take_weights(attempt, is_fresh=is_fresh)


def _start_of(attempt: Attempt, spec: JobSpec) -> RoundStart:
    """Where the ranks go on, and what they need to know to stop early."""
    job, stop = attempt.job, federated_of(spec).stop
    history, resumed_at = measured_before(job, stop.metric) if stop else ([], 0)
    return RoundStart(
        round=job.progress_done + 1,
        last_round=job.progress_total,
        weights=blobs.ref_of(attempt.weights_digest),
        memory=blobs.ref_of(attempt.memory_digest) if attempt.memory_digest else None,
        history=[(m.number, m.value) for m in (worth_keeping(stop, history) if stop else [])],
        resumed_at=resumed_at,
    )


def _is_wound_up(attempt: Attempt, assignments: list[Assignment], now: datetime) -> bool:
    """Whether nobody has anything left to say: ranks may still send the ends of their curves."""
    at_it = [a for a in assignments if a.state == Assignment.State.ACTIVE and not why_gone(a.node, a.boot_id)]
    return not at_it or now - _last_sign(attempt) > WOUND_UP_WITHIN


def _watch(attempt: Attempt, spec: JobSpec, assignments: list[Assignment], now: datetime) -> None:
    """Say what the job waits for, and give up ranks that have told of no round for too long."""
    since, patience = _last_sign(attempt), timedelta(seconds=2 * federated_of(spec).round_deadline_seconds)
    number, names = attempt.job.progress_done + 1, ", ".join(a.node.name for a in assignments)
    if now - since > patience:
        reason = (
            f"Round {number} did not come from {names} within {patience.total_seconds():,.0f} s, which is twice "
            "round_deadline_seconds."
        )
        lose_attempt(attempt=attempt, reason=reason)
    elif now - since > WORTH_SAYING_AFTER:
        value = waiting(
            what=f"Round {number} is being simulated on {names}.",
            since=since,
            until=since + patience,
            then="The job queues again, and goes on from the last closed round.",
        )
        set_waiting(attempt.job, value)


def _last_sign(attempt: Attempt) -> datetime:
    """When the attempt's last round was recorded, by the server's clock; else when the attempt began."""
    last = attempt.rounds.order_by("-number").values_list("state_changed_at", flat=True).first()
    return last or attempt.started_at

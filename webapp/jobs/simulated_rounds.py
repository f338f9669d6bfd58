"""The door for the rounds of a simulation. Torch-free: it runs in the web process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.utils import timezone

from trainer.federated.check_state import StateRefused, check_state
from trainer.protocol import Verdict
from trainer.simulation.messages import SimulatedRound, SimulatedRounds
from trainer.spec import JobSpec
from trainer.weights import read_header
from webapp.blobs import services as blobs
from webapp.core.models import Transition
from webapp.fleet.models import Node
from webapp.jobs import garbage
from webapp.jobs.closing import measured_before, say_stopped
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.door import own_assignment, refuse_stray, source_on
from webapp.jobs.models import Attempt, Job, Round, Stray
from webapp.jobs.numbers import to_json
from webapp.jobs.rounds import federated_of, num_quorum
from webapp.jobs.simulated_facts import facts_of
from webapp.jobs.simulation_claims import why_false, why_false_labels, why_false_stop, why_false_times, why_gap


def record_simulated(*, node: Node, attempt_id: int, offer: SimulatedRounds) -> Verdict:
    """Record consecutive rounds of a simulation, all or none, with the state after the last of them.

    Rounds that are recorded already are accepted again, without effect. Only the node of rank 0 is heard, and only while the
    attempt runs; what comes from others, or later, is counted as stray.
    """
    assignment = own_assignment(node, attempt_id)
    if assignment is None or assignment.index != 0 or not (spec := assignment.attempt.job.spec).is_simulated:
        reason = f"{node.name} does not host rank 0 of a simulation in attempt {attempt_id}."
        return refuse_stray(node, Stray.Kind.UPDATE, reason)
    attempt, job = assignment.attempt, assignment.attempt.job
    if attempt.rounds.filter(number=offer.rounds[-1].round).exists():
        return Verdict(accepted=True)  # the answer was lost; the job may have ended meanwhile
    if attempt.state != Attempt.State.RUNNING:
        reason = f"Attempt {attempt.number} of job {attempt.job_id} has ended: {attempt.state_reason}"
        return refuse_stray(node, Stray.Kind.UPDATE, reason)
    if reason := why_gap(offer, done=job.progress_done, planned=job.progress_total):
        return Verdict(accepted=False, reason=reason)
    new = [said for said in offer.rounds if said.round > job.progress_done]
    if not new:
        return Verdict(accepted=True)
    digests = [digest for digest in (offer.weights, offer.memory) if digest]
    try:
        if not all(map(blobs.exists, digests)):
            reason = "The weights' bytes are not on the server: send them first."
            return Verdict(accepted=False, reason=reason, missing_bytes=True)
        if reason := _why_bad(node, attempt, spec, new, offer):
            garbage.delete_on_commit(digests)
            return Verdict(accepted=False, reason=reason)
        if _record(attempt, spec, new, offer):
            return Verdict(accepted=True)
    except FileNotFoundError:  # another request recorded these rounds, and the weights before them are gone
        if Job.objects.filter(pk=job.pk, progress_done=job.progress_done, state=Job.State.RUNNING).exists():
            raise
    # The attempt ended, or these rounds were recorded by another request, at this moment: say which.
    return record_simulated(node=node, attempt_id=attempt_id, offer=offer)


def _why_bad(node: Node, attempt: Attempt, spec: JobSpec, new: list[SimulatedRound], offer: SimulatedRounds) -> str:
    """Why the job may not go on from what these rounds came to; empty where it may. Reads the files once."""
    source = source_on(node, spec.data.source)
    if source is None:
        return f"{node.name} has no data source '{spec.data.source}' any more."
    now = timezone.now()
    for said in new:
        if reason := why_false_times(said, began=attempt.started_at, now=now) or why_false(said, spec, source):
            return reason
    if reason := why_false_labels(offer, spec, source) or _why_false_stop(attempt.job, spec, new):
        return reason
    expected = read_header(blobs.path_of(attempt.weights_digest))
    memory = blobs.path_of(offer.memory) if offer.memory else None
    try:
        check_state(blobs.path_of(offer.weights), memory, expected, federated_of(spec))
    except StateRefused as error:
        return f"Round {new[-1].round}: {error}"
    return ""


def _why_false_stop(job: Job, spec: JobSpec, new: list[SimulatedRound]) -> str:
    federated = federated_of(spec)
    before, resumed_at = measured_before(job, federated.stop.metric) if federated.stop else ([], 0)
    if max(resumed_at, *(measured.number for measured in before), 0) >= new[0].round:
        return ""  # another request records them at this moment, and `_record` finds out
    return why_false_stop(new, federated, planned=job.progress_total, before=before, resumed_at=resumed_at)


def _record(attempt: Attempt, spec: JobSpec, new: list[SimulatedRound], offer: SimulatedRounds) -> bool:
    """Write the rounds and the state after them, in one transaction. False where the rows have moved on, or a blob went.

    The rows are taken in the order attempt, job, round, as everywhere.
    """
    job, last, planned = attempt.job, new[-1], attempt.job.progress_total
    stopped = say_stopped(last.round, planned, last.stopped)
    state = {
        "weights_digest": offer.weights,
        "weights_size_bytes": blobs.path_of(offer.weights).stat().st_size,
        "memory_digest": offer.memory or "",
    }
    progress = {"progress_done": last.round, "progress_total": last.round if stopped else planned, "num_retries": 0}
    with transaction.atomic():
        running = Attempt.objects.filter(pk=attempt.pk, state=Attempt.State.RUNNING)
        unmoved = Job.objects.filter(pk=job.pk, progress_done=new[0].round - 1, progress_total=planned)
        recorded = (
            garbage.hold_all(filter(None, [offer.weights, offer.memory]))
            and running.update(**state) == 1
            and unmoved.update(waiting_for=None, **progress) == 1
        )
        if not recorded:
            transaction.set_rollback(True)
            return False
        _create_rounds(attempt, spec, new, offer, stopped)
        garbage.delete_on_commit(filter(None, [attempt.weights_digest, attempt.memory_digest]))
        tell_browsers(job, "rounds")
    return True


def _create_rounds(
    attempt: Attempt, spec: JobSpec, new: list[SimulatedRound], offer: SimulatedRounds, stopped: str
) -> None:
    """Create the rows, closed. One transition tells of all of them: a simulation may close a hundred rounds a second."""
    now, first, last = timezone.now(), new[0].round, new[-1].round
    patience = timedelta(seconds=federated_of(spec).round_deadline_seconds)
    label_counts = None if attempt.rounds.exists() else offer.label_counts
    rows = []
    for said in new:
        opened, closed = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (said.opened_ms, said.closed_ms))
        is_first, is_last = said.round == first, said.round == last
        rows.append(
            Round(
                attempt=attempt,
                number=said.round,
                state=Round.State.CLOSED,
                state_reason=stopped if is_last else "",
                state_changed_at=now,
                # The weights between two records never leave the nodes.
                weights_digest=attempt.weights_digest if is_first else "",
                weights_size_bytes=attempt.weights_size_bytes,
                memory_digest=attempt.memory_digest if is_first else "",
                num_quorum=num_quorum(spec, said.num_clients),
                opened_at=opened,
                deadline_at=opened + patience,
                closed_at=closed,
                result_digest=offer.weights if is_last else "",
                metrics=to_json(said.metrics),
                facts=facts_of(said, label_counts if is_first else None),
            )
        )
    created = Round.objects.bulk_create(rows)
    told = f"Round {last} came" if first == last else f"Rounds {first} to {last} came"
    Transition.objects.create(
        thread=attempt.thread,
        subject=f"round:{created[-1].pk}",
        new=Round.State.CLOSED,
        reason=f"{told} from {attempt.assignments.select_related('node').get(index=0).node.name}. {stopped}".strip(),
        at=now,
    )

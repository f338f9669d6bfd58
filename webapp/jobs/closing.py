"""The end of a round: fix the set of its updates, aggregate them, and record the result. Each step goes on from the rows.

Whoever moves a round to CLOSING fixes the set of its updates and computes its result; should that worker die, the sweep
computes it again after `CLOSE_AGAIN_AFTER`. The result depends on the rows alone, so two that compute it agree
(privacy's noise aside), and one of them records it.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Max, Q
from django.db.models.fields.json import KeyTransform
from django.utils import timezone

from trainer.federated.aggregate import ClientUpdate
from trainer.federated.early_stop import Measured, why_last, worth_keeping
from trainer.sections.federated import EarlyStop
from trainer.secure.unmask import UnmaskFailed
from trainer.spec import JobSpec
from webapp.blobs import services as blobs
from webapp.jobs import garbage
from webapp.jobs.attempts import drop_participations, end_attempt, lose_attempt
from webapp.jobs.buffer_rows import buffer_of, counted_updates, open_next_round, staleness_of
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.models import Attempt, Job, Participation, Round
from webapp.jobs.numbers import from_json, to_json, weighted_means
from webapp.jobs.rounds import federated_of
from webapp.jobs.secure import forget_masks
from webapp.jobs.secure_unmasking import ask_survivors, read_masks
from webapp.jobs.server_data import measure_round
from webapp.jobs.settling import why_late
from webapp.telemetry.series import AGGREGATE, SERVER
from webapp.telemetry.services import record_values

if TYPE_CHECKING:
    from webapp.jobs.aggregation import RoundResult  # torch

logger = logging.getLogger(__name__)

CLOSE_AGAIN_AFTER = timedelta(seconds=10)
"""How long another process may compute a round before it counts as dead."""
_computed_here: set[int] = set()
"""Rounds that a thread of this process computes at the moment: however long it takes, that worker is alive."""
_NOT_TRAINED = "global/"
"""Metrics of the weights as they went out; all others are of what came of them."""
_TESTED = "test/"
"""Metrics on a client's test rows, which it has where its round measures."""
_WATCHED = "watched"
"""Where `Round.facts` keeps what the next round of the attempt needs to know of the job's rounds up to this one, for `stop`."""


def read_participations(round_: Round) -> list[Participation]:
    """The round's participations by client index, with what their steps need loaded."""
    rows = list(round_.participations.select_related("assignment__node"))
    for row in rows:
        row.round = round_
    return rows


def is_abandoned(round_: Round) -> bool:
    """Whether a round is CLOSING, and the worker that computes it counts as dead."""
    return (
        round_.state == Round.State.CLOSING
        and round_.pk not in _computed_here
        and timezone.now() - (round_.phase_at or round_.state_changed_at) > CLOSE_AGAIN_AFTER
    )


def close_round(round_: Round, spec: JobSpec, participations: list[Participation]) -> bool:
    """Fix the set of updates, aggregate them, and open the next round in the transaction that records the result.

    Needs `round_.attempt.job` loaded. Return whether this call recorded it. A sum of masked updates waits for the clients to
    unmask it.
    """
    # Step 1: nobody gets in any more.
    if round_.state == Round.State.OPEN:
        now = timezone.now()
        with transaction.atomic():
            masked: dict[str, Any] = {"phase": Round.Phase.UNMASKING, "phase_at": now} if round_.phase else {}
            if not round_.move_to(Round.State.CLOSING, **masked):
                return False  # another worker closes it, or the attempt has ended
            if not buffer_of(spec):  # there, whoever is out goes on, and counts in a later round
                drop_participations(round_, lambda participation: why_late(participation, now))
            if round_.phase:
                ask_survivors(round_, now)
        if round_.phase:
            return False
        if any(p.state != Participation.State.RETURNED for p in participations):
            participations = read_participations(round_)  # one may have returned at that moment
    returned = [p for p in participations if p.state == Participation.State.RETURNED]
    if buffer_of(spec):
        returned = counted_updates(round_)
    _computed_here.add(round_.pk)
    try:
        return _compute(round_, spec, returned)
    finally:
        _computed_here.discard(round_.pk)


def _compute(round_: Round, spec: JobSpec, returned: list[Participation]) -> bool:
    # Step 2: the sum, in the order of the clients' indices.
    from webapp.jobs import aggregation  # torch

    try:
        result = aggregation.aggregate(
            spec,
            number=round_.number,
            weights=round_.weights_digest,
            memory=round_.memory_digest,
            updates=[_update_of(participation) for participation in returned],
            masks=read_masks(round_),
        )
    except UnmaskFailed as error:  # a client has sent wrong shares, which is not the job's end
        _give_up(round_, f"The server could not unmask the sum of round {round_.number}: {error}", again=True)
        return False
    except (OSError, ValueError, RuntimeError) as error:  # torch says most things by RuntimeError
        _give_up(round_, f"The server could not aggregate round {round_.number}: {error}")
        return False

    # Step 3: record the result and go on, at once.
    if not _record(round_, spec, returned, result):
        # Another worker's result counts. Of two with privacy's noise none may be left: their mean is less noisy than either.
        garbage.delete_on_commit(_digests_of(result))
        return False
    garbage.delete_on_commit(
        digest
        for digest in [*(p.update_digest for p in returned), round_.weights_digest, round_.memory_digest]
        if digest
    )
    return True


def _update_of(participation: Participation) -> ClientUpdate:
    return ClientUpdate(
        path=blobs.path_of(participation.update_digest),
        client=participation.assignment.index,
        num_examples=participation.num_examples,
        num_steps=participation.num_steps,
        loss_before=participation.loss_before,
        staleness=staleness_of(participation),
    )


def _present(returned: list[Participation]) -> list[tuple[int, dict[str, float]]]:
    """Examples and metrics of each update, but what an older round's clients say of another round than this one.

    Of stale updates (FedBuff) `global/*` is of weights that an older round sent out. Their `test/*` stands beside the others'
    where every update counted has some. Under `evaluate_every` some were trained in a round that measures, and others were
    not: then only updates from the round's own weights speak of test rows, or a single slow client would stand for a round
    in which nobody measured, and could end the job by `stop`.
    """
    found = [(participation, from_json(participation.metrics)) for participation in returned]
    all_measured = all(any(name.startswith(_TESTED) for name in metrics) for _, metrics in found)
    hidden = (_NOT_TRAINED,) if all_measured else (_NOT_TRAINED, _TESTED)
    return [
        (p.num_examples, {n: v for n, v in metrics.items() if not (staleness_of(p) and n.startswith(hidden))})
        for p, metrics in found
    ]


def _digests_of(result: RoundResult) -> list[str]:
    return [result.weights.digest, *([result.memory.digest] if result.memory else [])]


def _record(round_: Round, spec: JobSpec, returned: list[Participation], result: RoundResult) -> bool:
    """Write the round's result and open the next one, in one transaction. False where another worker recorded it.

    The rows are taken in the order attempt, job, round, as everywhere: a cancel at this moment waits or wins, but does not
    deadlock.
    """
    attempt, job, number = round_.attempt, round_.attempt.job, round_.number
    means = weighted_means(_present(returned))
    means |= measure_round(round_, spec, weights=result.weights.digest)
    stopped, watched = _why_stopped(round_, spec, means)
    progress = {"progress_done": number, "progress_total": number if stopped else job.progress_total, "num_retries": 0}
    state = {
        "weights_digest": result.weights.digest,
        "weights_size_bytes": result.weights.size_bytes,
        "memory_digest": result.memory.digest if result.memory else "",
    }
    with transaction.atomic():
        running = Attempt.objects.filter(pk=attempt.pk, state=Attempt.State.RUNNING)
        # A blob can be missing only where a clone with the same seed deleted its own at this moment: the sweep closes again.
        recorded = garbage.hold_all(_digests_of(result)) and running.update(**state) == 1
        if recorded:
            Job.objects.filter(pk=job.pk).update(waiting_for=None, **progress)
            recorded = round_.move_to(
                Round.State.CLOSED,
                stopped,
                result_digest=result.weights.digest,
                closed_at=timezone.now(),
                metrics=to_json(means),
                facts=round_.facts | result.facts.model_dump(mode="json", exclude_none=True) | watched,
            )
            forget_masks(round_)
        if not recorded:
            transaction.set_rollback(True)
            return False
        for row, fields in ((attempt, state), (job, {"waiting_for": None, **progress})):
            for name, value in fields.items():
                setattr(row, name, value)
        if number < job.progress_total:
            open_next_round(attempt, spec, number + 1)
        _record_means(round_, spec, means)
        tell_browsers(job, "rounds")
    return True


def _why_stopped(round_: Round, spec: JobSpec, means: dict[str, float]) -> tuple[str, dict[str, Any]]:
    """Return why the round is the last one although more were planned, else nothing; and what its facts carry for the next.

    The round's row keeps the sentence.
    """
    federated, planned, number = federated_of(spec), round_.attempt.job.progress_total, round_.number
    stop = federated.stop
    if stop is None or number >= planned:
        return say_stopped(number, planned, why_last(federated, number, planned, [])), {}
    history, resumed_at = _carried(round_, stop)
    if stop.metric in means:
        history.append(Measured(number, means[stop.metric]))
    why = why_last(federated, number, planned, history, resumed_at=resumed_at)
    # As text, which takes NaN and gives back the same bits.
    kept = [[measured.number, repr(float(measured.value))] for measured in worth_keeping(stop, history)]
    return say_stopped(number, planned, why), {_WATCHED: {"history": kept, "resumed_at": resumed_at}}


def _carried(round_: Round, stop: EarlyStop) -> tuple[list[Measured], int]:
    """As `measured_before`, with what is worth keeping alone: from the attempt's round before, or an attempt's first round from
    all rows. Reading all of them in each round would cost the square of their number."""
    before = Round.objects.filter(attempt=round_.attempt_id, number=round_.number - 1).values_list("facts", flat=True)
    if watched := (before.first() or {}).get(_WATCHED):
        return [Measured(number, float(value)) for number, value in watched["history"]], watched["resumed_at"]
    history, resumed_at = measured_before(round_.attempt.job, stop.metric)
    return worth_keeping(stop, history), resumed_at


def measured_before(job: Job, metric: str) -> tuple[list[Measured], int]:
    """Return what the job's closed rounds measured, in order, and the last round with which it had ended before it was resumed."""
    closed = Round.objects.filter(attempt__job=job, state=Round.State.CLOSED).order_by("number")
    # A job that reached its goal in its last planned round has no sentence, and finished all the same.
    ended = closed.filter(~Q(state_reason="") | Q(attempt__state=Attempt.State.FINISHED))
    resumed_at = ended.aggregate(last=Max("number"))["last"] or 0
    measured = closed.filter(metrics__has_key=metric).values_list("number", KeyTransform(metric, "metrics"))
    return [Measured(number, float(value)) for number, value in measured], resumed_at


def say_stopped(number: int, planned: int, why: str) -> str:
    return f"Stopped after round {number} of {planned}: {why}" if why else ""


def _record_means(round_: Round, spec: JobSpec, means: dict[str, float]) -> None:
    """Draw the round's means. The weights that went out were measured before the round's epochs, what came of them after."""
    epochs = federated_of(spec).local_epochs
    before, after = (round_.number - 1) * epochs, round_.number * epochs
    values = {
        (name, SERVER if name.startswith("server/") else AGGREGATE): (
            before if name.startswith(_NOT_TRAINED) else after,
            value,
        )
        for name, value in means.items()
    }
    if values:
        record_values(attempt_id=round_.attempt_id, values=values)


def _give_up(round_: Round, reason: str, *, again: bool = False) -> None:
    """Fail the attempt, or let the job try `again`, unless another worker closed the round meanwhile (and deleted the updates under our hands)."""
    round_.refresh_from_db(fields=["state"])
    if round_.state == Round.State.CLOSING:
        logger.error("%s: %s", round_, reason)
        if again:
            lose_attempt(attempt=round_.attempt, reason=reason)
        else:
            end_attempt(attempt=round_.attempt, state=Attempt.State.FAILED, reason=reason)

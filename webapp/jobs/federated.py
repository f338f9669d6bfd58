"""The rounds of a federated job: open, wait, close, and leave the model. Each step goes on from the rows.

Whoever moves a round to CLOSING fixes the set of its updates and computes its result; should that worker die, the sweep
computes it again after `CLOSE_AGAIN_AFTER`. The result depends on the rows alone, so two that compute it agree, and one of
them records it.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from trainer.protocol import BlobRef, ReceiveModel
from trainer.sources import BUILTIN_SOURCES, SourceSchema
from trainer.spec import JobSpec
from webapp.fleet.models import Node
from webapp.fleet.services import send_to_node
from webapp.jobs import garbage
from webapp.jobs.attempts import drop_participations, end_attempt, lose_attempt
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.models import Artifact, Attempt, Job, Participation, Round
from webapp.jobs.numbers import from_json, to_json, weighted_means
from webapp.jobs.rounds import federated_of, open_round
from webapp.jobs.settling import chase, describe_wait, judge
from webapp.jobs.waiting import set_waiting
from webapp.telemetry.services import record_values

logger = logging.getLogger(__name__)

CLOSE_AGAIN_AFTER = timedelta(seconds=10)
MODEL_NAME = "model.safetensors"
_NOT_TRAINED = "global/"
"""Metrics of the weights as they went out; all others are of what came of them."""


def advance_federated(attempt: Attempt) -> None:
    """Do the next thing that is due for a running federated attempt. `attempt.job` is loaded."""
    spec = attempt.job.spec
    number = attempt.job.progress_done + 1
    if number > federated_of(spec).rounds:
        _finish(attempt, spec)
        return
    round_ = attempt.rounds.filter(number=number).first()
    if round_ is None:
        _begin(attempt, spec, number)
        return
    round_.attempt = attempt
    if round_.state == Round.State.OPEN:
        _tend(round_, spec)
    elif round_.state == Round.State.CLOSING and timezone.now() - round_.state_changed_at > CLOSE_AGAIN_AFTER:
        _close(round_, spec, list(_participations(round_)))


def _begin(attempt: Attempt, spec: JobSpec, number: int) -> None:
    """Open the attempt's first round, with new weights unless it goes on from another attempt's."""
    fresh = not attempt.weights_digest
    if fresh and not _make_weights(attempt, spec):
        return
    try:
        with transaction.atomic():
            if not garbage.hold(attempt.weights_digest):
                if fresh:
                    return  # a clone with the same seed deleted its own at this moment: the sweep makes them again
                reason = "The weights to start from are gone from the server's store: clone the job to start anew."
                end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
                return
            # Takes the attempt's row first, as a cancel does: a cancelled attempt opens nothing.
            if not Attempt.objects.filter(pk=attempt.pk, state=Attempt.State.RUNNING).update(
                weights_digest=attempt.weights_digest, weights_size_bytes=attempt.weights_size_bytes
            ):
                return
            open_round(attempt, spec, number)
            tell_browsers(attempt.job, "rounds")
    except IntegrityError:
        return  # another worker opened this round first


def _make_weights(attempt: Attempt, spec: JobSpec) -> bool:
    """Set the attempt's first weights. The same spec gives the same bytes, so that two that make them agree."""
    from webapp.jobs import aggregation  # torch

    try:
        source = _source_of(attempt, spec)
        ref = aggregation.make_initial_weights(spec, source)
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"The server could not make the first weights: {error}"
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
        return False
    attempt.weights_digest, attempt.weights_size_bytes = ref.digest, ref.size_bytes
    return True


def _source_of(attempt: Attempt, spec: JobSpec) -> SourceSchema:
    """The schema of the job's data source. Raises ValueError where its nodes disagree about what one model must fit."""
    name = spec.data.source
    if name in BUILTIN_SOURCES:
        return BUILTIN_SOURCES[name]
    found: dict[str, SourceSchema] = {}
    for assignment in attempt.assignments.select_related("node"):
        schema = next((s for s in assignment.node.facts.sources if s.name == name), None)
        if schema is None:
            raise ValueError(f"{assignment.node.name} does not declare the data source '{name}' any more.")
        found[assignment.node.name] = schema
    (first_node, first), *others = found.items()
    for node, schema in others:
        if (schema.task, schema.shape, schema.num_outputs) != (first.task, first.shape, first.num_outputs):
            raise ValueError(
                f"'{name}' is a {first.task} of shape {list(first.shape)} with {first.num_outputs} outputs on {first_node}, "
                f"and a {schema.task} of shape {list(schema.shape)} with {schema.num_outputs} on {node}."
            )
    return first


def _participations(round_: Round) -> list[Participation]:
    """The round's participations by client index, with what their steps need loaded."""
    rows = list(round_.participations.select_related("assignment__node"))
    for row in rows:
        row.round = round_
    return rows


def _tend(round_: Round, spec: JobSpec) -> None:
    """Step 1: chase who is out. Step 2: close the round, give it up, or say whom it waits for."""
    attempt, now = round_.attempt, timezone.now()
    participations = _participations(round_)
    chase(participations, spec, now)
    verdict = judge(round_, participations, now)
    if verdict.act == "close":
        _close(round_, spec, participations)
    elif verdict.act == "lose":
        lose_attempt(attempt=attempt, reason=verdict.reason)
    elif verdict.act == "fail":
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=verdict.reason)
    else:
        set_waiting(attempt.job, describe_wait(round_, participations, now))


def _close(round_: Round, spec: JobSpec, participations: list[Participation]) -> None:
    """Fix the set of updates, aggregate them, and open the next round in the transaction that records the result."""
    # Step 1: nobody gets in any more.
    if round_.state == Round.State.OPEN:
        with transaction.atomic():
            if not round_.move_to(Round.State.CLOSING):
                return  # another worker closes it, or the attempt has ended
            drop_participations(round_, f"It was not in when round {round_.number} closed.")
        if any(p.state != Participation.State.RETURNED for p in participations):
            participations = _participations(round_)  # one may have returned at that moment
    returned = [p for p in participations if p.state == Participation.State.RETURNED]

    # Step 2: the sum, in the order of the clients' indices.
    from webapp.jobs import aggregation  # torch

    updates = [(p.update_digest, p.num_examples) for p in returned]
    try:
        result = aggregation.aggregate(spec, weights=round_.weights_digest, updates=updates)
    except (OSError, ValueError, RuntimeError) as error:  # torch says most things by RuntimeError
        _give_up(round_, f"The server could not aggregate round {round_.number}: {error}")
        return

    # Step 3: record the result and go on, at once.
    if not _record(round_, spec, returned, result):
        return
    garbage.delete_on_commit([*(digest for digest, _ in updates), round_.weights_digest])
    if round_.number == federated_of(spec).rounds:
        _finish(round_.attempt, spec)


def _record(round_: Round, spec: JobSpec, returned: list[Participation], result: BlobRef) -> bool:
    """Write the round's result and open the next one, in one transaction. False where another worker recorded it.

    The rows are taken in the order attempt, job, round, as everywhere: a cancel at this moment waits or wins, but does not
    deadlock.
    """
    attempt, job = round_.attempt, round_.attempt.job
    means = weighted_means((p.num_examples, from_json(p.metrics)) for p in returned)
    rounds, epochs = federated_of(spec).rounds, federated_of(spec).local_epochs
    with transaction.atomic():
        weights = {"weights_digest": result.digest, "weights_size_bytes": result.size_bytes}
        running = Attempt.objects.filter(pk=attempt.pk, state=Attempt.State.RUNNING)
        # The blob can be missing only where a clone with the same seed deleted its own at this moment: the sweep closes again.
        recorded = garbage.hold(result.digest) and running.update(**weights) == 1
        if recorded:
            Job.objects.filter(pk=job.pk).update(progress_done=round_.number, num_retries=0, waiting_for=None)
            recorded = round_.move_to(
                Round.State.CLOSED, result_digest=result.digest, closed_at=timezone.now(), metrics=to_json(means)
            )
        if not recorded:
            transaction.set_rollback(True)
            return False
        attempt.weights_digest, attempt.weights_size_bytes = result.digest, result.size_bytes
        job.progress_done, job.num_retries, job.waiting_for = round_.number, 0, None
        if round_.number < rounds:
            open_round(attempt, spec, round_.number + 1)
        # The weights that went out were measured before the round's epochs, what the clients made of them after.
        before = {name: value for name, value in means.items() if name.startswith(_NOT_TRAINED)}
        after = {name: value for name, value in means.items() if name not in before}
        for step, values in (((round_.number - 1) * epochs, before), (round_.number * epochs, after)):
            if values:
                record_values(attempt_id=attempt.pk, step=step, source="aggregate", values=values)
        tell_browsers(job, "rounds")
    return True


def _give_up(round_: Round, reason: str) -> None:
    """Fail the attempt, unless another worker closed the round meanwhile (and deleted the updates under our hands)."""
    round_.refresh_from_db(fields=["state"])
    if round_.state == Round.State.CLOSING:
        logger.error("%s: %s", round_, reason)
        end_attempt(attempt=round_.attempt, state=Attempt.State.FAILED, reason=reason)


def _finish(attempt: Attempt, spec: JobSpec) -> None:
    """Leave the model as an artifact, tell every node to keep it, and end the job."""
    from webapp.jobs import aggregation  # torch

    job = attempt.job
    try:
        model = aggregation.export_model(spec, weights=attempt.weights_digest)
    except (OSError, ValueError) as error:
        reason = f"The server could not write the final model: {error}"
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
        return
    with transaction.atomic():
        if not garbage.hold(model.digest):
            return  # a clone with the same seed deleted its own at this moment: the sweep finishes
        if not end_attempt(attempt=attempt, state=Attempt.State.FINISHED, reason=_summary(attempt, spec)):
            return  # cancelled, or finished by another worker, first
        Artifact.objects.create(
            job=job, attempt=attempt, name=MODEL_NAME, digest=model.digest, size_bytes=model.size_bytes
        )
        send_model(attempt, model)
        tell_browsers(job, "artifacts")


def send_model(attempt: Attempt, model: BlobRef) -> None:
    """Tell the attempt's nodes that are online and have not said so yet to keep the final model. The sweep asks the others."""
    missing = attempt.assignments.filter(model_kept_at=None)
    keep = ReceiveModel(job_id=attempt.job_id, attempt_id=attempt.pk, weights=model)
    for assignment in missing.select_related("node").filter(node__state=Node.State.ONLINE):
        send_to_node(node=assignment.node, message=keep)
    missing.update(model_sent_at=timezone.now())


def _summary(attempt: Attempt, spec: JobSpec) -> str:
    """How it ended, in a sentence. A run that went on with a part of its clients says so."""
    rounds = federated_of(spec).rounds
    closed = Participation.objects.filter(round__attempt__job=attempt.job, round__state=Round.State.CLOSED)
    missing = closed.exclude(state=Participation.State.RETURNED).count()
    closed_all = "The round closed" if rounds == 1 else f"All {rounds} rounds closed"
    return f"{closed_all}, with {missing} updates missing." if missing else f"{closed_all}."

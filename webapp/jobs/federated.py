"""The road of a federated job: first weights, round after round, and the model. Each step goes on from the rows."""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.template.defaultfilters import pluralize
from django.utils import timezone

from trainer.federated.early_stop import last_round, why_unaffordable
from trainer.message import BlobRef
from trainer.protocol import ReceiveModel
from trainer.sources import BUILTIN_SOURCES, SourceSchema
from trainer.spec import JobSpec
from webapp.fleet.models import Node
from webapp.fleet.services import send_to_node
from webapp.jobs import garbage
from webapp.jobs.attempts import end_attempt, lose_attempt
from webapp.jobs.buffer_rows import buffer_of
from webapp.jobs.buffered import tend_buffer
from webapp.jobs.closing import close_round, is_abandoned, read_participations
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.models import Artifact, Attempt, Participation, Round
from webapp.jobs.rounds import federated_of, open_round
from webapp.jobs.secure import is_exchanging
from webapp.jobs.secure_exchange import tend_exchange
from webapp.jobs.secure_unmasking import tend_unmasking
from webapp.jobs.settling import chase, describe_wait, judge
from webapp.jobs.waiting import Waiting, set_waiting

MODEL_NAME = "model.safetensors"


def advance_federated(attempt: Attempt) -> None:
    """Do the next thing that is due for a running federated attempt. `attempt.job` is loaded."""
    spec = attempt.job.spec
    number = attempt.job.progress_done + 1
    if number > attempt.job.progress_total:
        finish_federated(attempt, spec)
        return
    round_ = attempt.rounds.filter(number=number).first()
    if round_ is None:
        _begin(attempt, spec, number)
        return
    round_.attempt = attempt
    if round_.state == Round.State.OPEN:
        _tend(round_, spec)
    elif round_.phase == Round.Phase.UNMASKING:
        if tend_unmasking(round_, timezone.now()):
            _close(round_, spec, read_participations(round_))
    elif is_abandoned(round_):
        _close(round_, spec, read_participations(round_))


def _begin(attempt: Attempt, spec: JobSpec, number: int) -> None:
    """Open the attempt's first round, with new weights unless it goes on from another attempt's."""
    is_fresh = not attempt.weights_digest
    if not find_weights(attempt, spec, number):
        return
    try:
        with transaction.atomic():
            if take_weights(attempt, is_fresh=is_fresh):
                open_round(attempt, spec, number)
                tell_browsers(attempt.job, "rounds")
    except IntegrityError:
        return  # another worker opened this round first


def find_weights(attempt: Attempt, spec: JobSpec, number: int) -> bool:
    """See that there are weights for round `number` to start from: new ones unless the attempt has some. False ended the attempt."""
    if number > last_round(federated_of(spec), attempt.job.progress_total):
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=why_unaffordable(federated_of(spec), number))
        return False
    return attempt.weights_digest != "" or _make_weights(attempt, spec)


def take_weights(attempt: Attempt, *, is_fresh: bool) -> bool:
    """Hold the weights that `find_weights` found, and write them into the attempt's row. Call it in a transaction.

    False where a round must not begin now: it may later, or the attempt has ended. `is_fresh`: nobody has trained on them yet.
    """
    if not garbage.hold_all(filter(None, [attempt.weights_digest, attempt.memory_digest])):
        if is_fresh:
            return False  # a clone with the same seed deleted its own at this moment: the sweep makes them again
        reason = "The weights to start from are gone from the server's store: clone the job to start anew."
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
        return False
    # Takes the attempt's row first, as a cancel does: a cancelled attempt begins nothing.
    running = Attempt.objects.filter(pk=attempt.pk, state=Attempt.State.RUNNING)
    return running.update(weights_digest=attempt.weights_digest, weights_size_bytes=attempt.weights_size_bytes) == 1


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
        if spec.is_simulated and schema.num_rows != first.num_rows:
            raise ValueError(
                f"A simulation deals the same rows on each of its nodes, and '{name}' has {first.num_rows:,} on {first_node} "
                f"and {schema.num_rows:,} on {node}: simulate on one node, or give both the same file."
            )
    return first


def _tend(round_: Round, spec: JobSpec) -> None:
    """Step 1: chase who is out. Step 2: close the round, give it up, or say whom it waits for."""
    attempt, now = round_.attempt, timezone.now()
    participations: list[Participation] = []
    wait: Waiting | None
    if buffer_of(spec):
        verdict, wait = tend_buffer(round_, spec, now)
    elif is_exchanging(round_):
        verdict, wait = tend_exchange(round_, spec, now)
    else:
        participations = read_participations(round_)
        chase(participations, spec, now)
        verdict = judge(round_, participations, now)
        wait = describe_wait(round_, participations, now)
    if verdict.act == "close":
        _close(round_, spec, participations)
    elif verdict.act == "lose":
        lose_attempt(attempt=attempt, reason=verdict.reason)
    elif verdict.act == "fail":
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=verdict.reason)
    else:
        set_waiting(attempt.job, wait)


def _close(round_: Round, spec: JobSpec, participations: list[Participation]) -> None:
    if close_round(round_, spec, participations) and round_.number == round_.attempt.job.progress_total:
        finish_federated(round_.attempt, spec)


def finish_federated(attempt: Attempt, spec: JobSpec) -> None:
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
        if not end_attempt(attempt=attempt, state=Attempt.State.FINISHED, reason=_summary(attempt)):
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


def _summary(attempt: Attempt) -> str:
    """How it ended, in a sentence. A run that stopped early says why, and one that went on with a part of its clients says so."""
    job = attempt.job
    closed = Round.objects.filter(attempt__job=job, state=Round.State.CLOSED)
    # Who is at work to the end of a FedBuff job misses nothing.
    in_time = (Participation.State.RETURNED, Participation.State.ASKED)
    missing = Participation.objects.filter(round__in=closed).exclude(state__in=in_time).count()
    updates = f"{missing:,} update{pluralize(missing)}"
    if stopped := closed.filter(number=job.progress_done).values_list("state_reason", flat=True).first():
        return f"{stopped} {updates} {'was' if missing == 1 else 'were'} missing." if missing else stopped
    closed_all = "The round closed" if job.progress_total == 1 else f"All {job.progress_total} rounds closed"
    return f"{closed_all}, with {updates} missing." if missing else f"{closed_all}."

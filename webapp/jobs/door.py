"""The server's door for what nodes deliver over HTTP. Each message is fenced, checked, and recorded once.

A node may only deliver what it was asked for: this attempt, this round, its own part. Everything else is refused with a
sentence and counted (`Stray`), and changes nothing. Torch-free: it runs in the web process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from trainer.federated.check import UpdateRefused, check_update
from trainer.protocol import ArtifactOffer, Rendezvous, UpdateOffer, Verdict
from trainer.sources import BUILTIN_SOURCES, SourceSchema
from trainer.weights import Header, NotSafetensors, read_header
from webapp.blobs import services as blobs
from webapp.core.errors import Refusal
from webapp.fleet.models import Node
from webapp.jobs import claims, garbage
from webapp.jobs.buffer_rows import buffer_of, hold_running, let_go, take_update
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.models import Artifact, Assignment, Attempt, Participation, Round, Stray
from webapp.jobs.numbers import to_json
from webapp.jobs.rounds import hold_open
from webapp.jobs.secure_updates import check_masked_update, why_not_taken


def accept_update(*, node: Node, attempt_id: int, round_number: int, offer: UpdateOffer) -> Verdict:
    """Record a client's update of an open round. The same update again is accepted again, without effect.

    Where nobody is at work any more after the commit, asks the conductor to look at the round.
    """
    participation = (
        Participation.objects.select_related("assignment", "round__attempt__job")
        .filter(round__attempt_id=attempt_id, round__number=round_number, assignment__node=node)
        .first()
    )
    if participation is None:
        return refuse_stray(
            node, Stray.Kind.UPDATE, f"{node.name} was not asked for round {round_number} of attempt {attempt_id}."
        )
    round_ = participation.round
    if participation.state == Participation.State.RETURNED and participation.update_digest == offer.digest:
        return Verdict(accepted=True)
    if reason := _why_closed(participation):
        return refuse_stray(node, Stray.Kind.UPDATE, reason)
    if not blobs.exists(offer.digest):
        return Verdict(accepted=False, reason="The update's bytes are not on the server: send them first.")
    try:
        reason = _why_bad(node, participation, offer)
    except FileNotFoundError:  # the round closed meanwhile, and its files are gone: say so
        participation = Participation.objects.select_related("round__attempt__job").get(pk=participation.pk)
        if not _why_closed(participation):
            raise
        return accept_update(node=node, attempt_id=attempt_id, round_number=round_number, offer=offer)
    with transaction.atomic():
        if reason:
            # Whatever is wrong with it: the client has trained, and spent.
            spent = claims.claimed_epsilon(offer, round_.attempt.job.spec)
            moved = _hold(participation) and participation.move_to(
                Participation.State.REFUSED, reason, returned_at=timezone.now(), epsilon=spent
            )
            garbage.delete_on_commit([offer.digest])
            if buffer_of(round_.attempt.job.spec):
                let_go(participation)
        else:
            if not garbage.hold(offer.digest):
                return Verdict(
                    accepted=False, reason="The update's bytes are not on the server any more: send them again."
                )
            moved = _take(
                participation,
                returned_at=timezone.now(),
                update_digest=offer.digest,
                size_bytes=blobs.path_of(offer.digest).stat().st_size,
                num_examples=offer.num_examples,
                seconds_training=offer.seconds_training,
                num_steps=offer.num_steps,
                loss_before=offer.loss_before,
                epsilon=offer.epsilon,
                bytes_down=offer.bytes_down,
                num_saturated=offer.num_saturated,
                label_counts=_new_labels(participation.assignment, offer),
                metrics=to_json(offer.metrics),
            )
        tell_browsers(round_.attempt.job, "rounds")
    if not moved:  # the round closed, or this very update arrived by another way, at this moment: say which
        return accept_update(node=node, attempt_id=attempt_id, round_number=round_number, offer=offer)
    # Looked up after the commit: of two last updates at once, the later commit sees that nobody is at work. Those whose node
    # is gone do not count: the conductor knows how long to wait for them, and the sweep would come up to 2 s later.
    # Under FedBuff, whoever returns may fill the buffer, or is to be asked anew.
    if buffer_of(round_.attempt.job.spec) or not round_.participations.filter(state=Participation.State.ASKED).exists():
        request("advance_attempt", attempt_id)
    return Verdict(accepted=not reason, reason=reason)


def _hold(participation: Participation) -> bool:
    """Keep what is to take the update from ending until the transaction does. False where it takes no more."""
    round_ = participation.round
    return hold_running(round_.attempt_id) if buffer_of(round_.attempt.job.spec) else hold_open(round_)


def _take(participation: Participation, **fields: Any) -> bool:
    if buffer_of(participation.round.attempt.job.spec):
        return take_update(participation, **fields)
    return _hold(participation) and participation.move_to(Participation.State.RETURNED, **fields)


def _new_labels(assignment: Assignment, offer: UpdateOffer) -> dict[str, int] | None:
    """The client's label counts, unless it has said them: they hold for the attempt, and 10,000 classes take 169 kB a row."""
    if offer.label_counts is None or assignment.participations.filter(label_counts__isnull=False).exists():
        return None
    return offer.label_counts


def _why_closed(participation: Participation) -> str:
    """Why the round takes nothing from this client any more; empty where it does."""
    round_ = participation.round
    attempt = round_.attempt
    if attempt.state != Attempt.State.RUNNING:
        return f"Attempt {attempt.number} of job {attempt.job_id} has ended: {attempt.state_reason}"
    is_buffered = buffer_of(attempt.job.spec) is not None
    if is_buffered and participation.state == Participation.State.LATE:
        return participation.state_reason
    if participation.state not in Participation.OUT:
        return f"The update for round {round_.number} is settled already ({participation.state})."
    if round_.state != Round.State.OPEN and not is_buffered:
        return f"Round {round_.number} takes no more updates: it is {Round.State(round_.state).label.lower()}."
    return why_not_taken(participation)


def _why_bad(node: Node, participation: Participation, offer: UpdateOffer) -> str:
    """Why the update may not be summed; empty where it may. Reads the whole file once."""
    round_ = participation.round
    spec = round_.attempt.job.spec
    assert spec.federated is not None
    source = source_on(node, spec.data.source)
    if source is None:
        return f"{node.name} has no data source '{spec.data.source}' any more."
    if reason := claims.why_false(offer, spec, source, node_name=node.name, weights_bytes=round_.weights_size_bytes):
        return reason
    path, header = blobs.path_of(offer.digest), _header(round_.weights_digest)
    try:
        if spec.federated.secure_aggregation:
            check_masked_update(path, header, participation, offer)
        else:
            check_update(path, header, spec.federated)
    except UpdateRefused as error:
        return str(error)
    return ""


def source_on(node: Node, name: str) -> SourceSchema | None:
    """The schema of a data source on a node; None where the node does not declare it."""
    builtin = BUILTIN_SOURCES.get(name)
    return builtin or next((schema for schema in node.facts.sources if schema.name == name), None)


@lru_cache(maxsize=64)
def _header(weights_digest: str) -> Header:
    """Names, types and shapes of a round's weights. A blob never changes, so its header may be remembered."""
    return read_header(blobs.path_of(weights_digest))


def accept_artifact(*, node: Node, attempt_id: int, offer: ArtifactOffer) -> Verdict:
    """Record a file that the node of rank 0 leaves for a running attempt. The same file again is accepted again.

    Of other ranks nothing is taken, nor of clients: the model of a federated job is the server's own.
    """
    assignment = own_assignment(node, attempt_id)
    if assignment is None:
        return refuse_stray(node, Stray.Kind.ARTIFACT, f"{node.name} has no part in attempt {attempt_id}.")
    attempt = assignment.attempt
    if attempt.job.mode != "distributed" or assignment.index != 0:
        return refuse_stray(node, Stray.Kind.ARTIFACT, f"{node.name} does not host rank 0 of attempt {attempt_id}.")
    kept = attempt.artifacts.filter(name=offer.name).first()
    if kept is not None and kept.digest == offer.digest:
        return Verdict(accepted=True)
    if attempt.state != Attempt.State.RUNNING:
        return refuse_stray(node, Stray.Kind.ARTIFACT, f"Attempt {attempt.number} of job {attempt.job_id} has ended.")
    if kept is not None:
        return refuse_stray(
            node, Stray.Kind.ARTIFACT, f"Attempt {attempt.number} has another file {offer.name} already."
        )
    if not blobs.exists(offer.digest):
        return Verdict(accepted=False, reason="The file's bytes are not on the server: send them first.")
    path = blobs.path_of(offer.digest)
    if offer.name.endswith(".safetensors"):
        try:
            read_header(path)
        except NotSafetensors as error:
            return Verdict(accepted=False, reason=f"{offer.name} is not a safetensors file: {error.__cause__}.")
    with transaction.atomic():
        if not garbage.hold(offer.digest):
            return Verdict(accepted=False, reason="The file's bytes are not on the server any more: send them again.")
        Artifact.objects.get_or_create(
            attempt=attempt,
            name=offer.name,
            defaults={"job": attempt.job, "digest": offer.digest, "size_bytes": path.stat().st_size},
        )
        tell_browsers(attempt.job, "artifacts")
    return Verdict(accepted=True)


def announce_rendezvous(*, node: Node, attempt_id: int, rendezvous: Rendezvous) -> None:
    """Record where the ranks of an attempt meet. Only the node of group rank 0 may say so. Raises Refusal (403)."""
    assignment = own_assignment(node, attempt_id)
    if assignment is None or assignment.index != 0 or assignment.attempt.state != Attempt.State.RUNNING:
        sentence = f"{node.name} does not host the rendezvous of attempt {attempt_id}."
        count_stray(node_id=str(node.pk), kind=Stray.Kind.RENDEZVOUS, reason=sentence)
        raise Refusal(sentence, status=403)
    running = Attempt.objects.filter(pk=attempt_id, state=Attempt.State.RUNNING)
    running.update(rendezvous=rendezvous.model_dump(mode="json"))


def read_rendezvous(*, node: Node, attempt_id: int) -> Rendezvous | None:
    """Where the ranks of an attempt of this node meet; None while nobody has said so."""
    assignment = own_assignment(node, attempt_id)
    if assignment is None or assignment.attempt.rendezvous is None:
        return None
    return Rendezvous.model_validate(assignment.attempt.rendezvous)


def count_stray(*, node_id: str, kind: Stray.Kind, reason: str, num: int = 1) -> None:
    """Count messages that nobody waits for; `reason` is that of the last one."""
    Stray.objects.get_or_create(node_id=node_id, kind=kind)
    Stray.objects.filter(node_id=node_id, kind=kind).update(
        count=F("count") + num, last_reason=reason[:500], last_at=timezone.now()
    )


def refuse_stray(node: Node, kind: Stray.Kind, reason: str) -> Verdict:
    """Say no to a message that nobody waits for, and count it."""
    count_stray(node_id=str(node.pk), kind=kind, reason=reason)
    return Verdict(accepted=False, reason=reason)


def own_assignment(node: Node, attempt_id: int) -> Assignment | None:
    """The node's part in an attempt, with the attempt and its job loaded."""
    return Assignment.objects.select_related("attempt__job").filter(attempt_id=attempt_id, node=node).first()

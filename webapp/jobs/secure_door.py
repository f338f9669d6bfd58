"""The server's door for what clients post about their masks: keys, shares, and answers that unmask a sum.

As at the door for updates (`webapp.jobs.door`): what nobody waits for is refused with a sentence and counted, and changes
nothing; the same post again is accepted again, without effect. A post that completes its phase wakes the conductor.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.utils import timezone

from trainer.protocol import Verdict
from trainer.secure.keys import BadKeys, fingerprint, verify
from trainer.secure.messages import PublicKeys, SealedShares, Unmasking
from webapp.fleet.models import Node
from webapp.jobs import secure
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.door import refuse_stray
from webapp.jobs.models import Attempt, MaskExchange, Participation, Round, Stray
from webapp.jobs.secure_updates import masks_of, what_it_does

Phase = Round.Phase
_STATE_OF = {Phase.KEYS: Round.State.OPEN, Phase.SHARES: Round.State.OPEN, Phase.UNMASKING: Round.State.CLOSING}
_FIELD_OF = {Phase.KEYS: "keys", Phase.SHARES: "sealed", Phase.UNMASKING: "unmasking"}
_NAME_OF = {Phase.KEYS: "keys", Phase.SHARES: "shares", Phase.UNMASKING: "answers that unmask its sum"}


def accept_keys(*, node: Node, attempt_id: int, round_number: int, keys: PublicKeys) -> Verdict:
    """Record a client's keys. A session that began anew posts others, and the last ones count until the phase ends."""
    return _accept(node, attempt_id, round_number, Phase.KEYS, keys)


def accept_shares(*, node: Node, attempt_id: int, round_number: int, shares: SealedShares) -> Verdict:
    """Record a client's shares, each sealed for another client of the roster."""
    return _accept(node, attempt_id, round_number, Phase.SHARES, shares)


def accept_unmasking(*, node: Node, attempt_id: int, round_number: int, unmasking: Unmasking) -> Verdict:
    """Record a survivor's answer: shares of the survivors' self masks, and of the masking keys of who dropped out."""
    return _accept(node, attempt_id, round_number, Phase.UNMASKING, unmasking)


def _accept(
    node: Node, attempt_id: int, round_number: int, phase: Phase, post: PublicKeys | SealedShares | Unmasking
) -> Verdict:
    participation = (
        Participation.objects.select_related("assignment", "round__attempt__job", "masks")
        .filter(round__attempt_id=attempt_id, round__number=round_number, assignment__node=node)
        .first()
    )
    if participation is None:
        return refuse_stray(
            node, Stray.Kind.UPDATE, f"{node.name} was not asked for round {round_number} of attempt {attempt_id}."
        )
    round_, masks = participation.round, masks_of(participation)
    value = post.sealed if isinstance(post, SealedShares) else post.model_dump(mode="json")
    value = {str(key): part for key, part in value.items()}  # as the column keeps it
    if masks is not None and getattr(masks, _FIELD_OF[phase]) == value:
        return Verdict(accepted=True)
    if reason := _why_closed(node, participation, masks, phase):
        return refuse_stray(node, Stray.Kind.UPDATE, reason)
    reason = _why_bad(node, participation, post)
    if reason and phase == Phase.UNMASKING:  # its update is in, and stays in
        return refuse_stray(node, Stray.Kind.UPDATE, reason)
    with transaction.atomic():
        # Its lock lets the phase end before or after this post, never between its parts.
        open_ = Round.objects.select_for_update().filter(pk=round_.pk, state=_STATE_OF[phase], phase=phase)
        held = open_.first() is not None
        if held and reason:
            held = participation.move_to(Participation.State.REFUSED, reason, returned_at=timezone.now())
            tell_browsers(round_.attempt.job, "rounds")
        elif held:
            _write(participation, phase, value)
    if not held:  # the phase ended at this moment, or the client was settled: say which
        return _accept(node, attempt_id, round_number, phase, post)
    if _is_complete(round_, phase):
        request("advance_attempt", attempt_id)
    return Verdict(accepted=not reason, reason=reason)


def _write(participation: Participation, phase: Phase, value: dict[str, Any]) -> None:
    if phase == Phase.KEYS:
        MaskExchange.objects.update_or_create(participation=participation, defaults={"keys": value})
    else:
        MaskExchange.objects.filter(participation=participation).update(**{_FIELD_OF[phase]: value})


def _is_complete(round_: Round, phase: Phase) -> bool:
    """Whether nobody is out who could post in this phase: looked up after the commit, so that of two last posts one sees it."""
    if phase == Phase.UNMASKING:
        terms = secure.terms_of(round_)
        assert terms is not None
        answered = MaskExchange.objects.filter(participation__round=round_, unmasking__isnull=False)
        return answered.count() >= terms.threshold
    asked = round_.participations.filter(state=Participation.State.ASKED)
    missing = {"masks__isnull": True} if phase == Phase.KEYS else {"masks__sealed__isnull": True}
    return not asked.filter(**missing).exists()


def _why_closed(node: Node, participation: Participation, masks: MaskExchange | None, phase: Phase) -> str:
    """Why the round takes no such post from this client any more, or not yet; empty where it does."""
    round_, name = participation.round, _NAME_OF[phase]
    attempt = round_.attempt
    if attempt.state != Attempt.State.RUNNING:
        return f"Attempt {attempt.number} of job {attempt.job_id} has ended: {attempt.state_reason}"
    if round_.phase_at is None:
        return f"The updates of round {round_.number} are not masked: it takes no {name}."
    if (round_.state, round_.phase) != (_STATE_OF[phase], phase):
        if phase == Phase.KEYS:
            return (
                f"Round {round_.number} went on without the keys of {node.name}: it takes part again in the next round."
            )
        return f"Round {round_.number} does not wait for {name} (it is {what_it_does(round_)})."
    if phase == Phase.UNMASKING:
        survived = participation.state == Participation.State.RETURNED
        return "" if survived else f"The update of {node.name} is not among those that round {round_.number} sums up."
    if participation.state not in Participation.OUT:
        return f"The part of {node.name} in round {round_.number} is settled already ({participation.state})."
    if phase == Phase.SHARES and masks is None:
        return f"{node.name} posted no keys for round {round_.number}: it takes part again in the next round."
    return ""


def _why_bad(node: Node, participation: Participation, post: PublicKeys | SealedShares | Unmasking) -> str:
    """Why the post cannot be used; empty where it can."""
    round_, client = participation.round, participation.assignment.index
    if post.client != client:
        return f"{node.name} posts for client {post.client}, and is client {client} of round {round_.number}."
    if isinstance(post, PublicKeys):
        return _why_bad_keys(node, round_, post)
    if isinstance(post, SealedShares):
        roster = _clients(round_, masks__isnull=False)
        return "" if set(post.sealed) == roster - {client} else f"{node.name} did not share with each other client."
    shared = _clients(round_, masks__sealed__isnull=False)
    survivors = _clients(round_, state=Participation.State.RETURNED)
    # Shares may be missing, as those of a client whose box did not open. None may be of the other kind.
    if not (set(post.self_masks) <= survivors and set(post.masking_keys) <= shared - survivors):
        return f"The answer of {node.name} is not to what round {round_.number} asked it."
    return ""


def _why_bad_keys(node: Node, round_: Round, keys: PublicKeys) -> str:
    if (keys.node_id, keys.node) != (str(node.pk), node.name):
        return f"{node.name} posts keys in the name of {keys.node}."
    if keys.identity != node.facts.public_key:
        known = fingerprint(node.facts.public_key) if node.facts.public_key else "none"
        return (
            f"{node.name} signs with the key {fingerprint(keys.identity)}, and the one that its page shows is {known}: restart "
            "its agent."
        )
    try:
        verify(keys, attempt_id=round_.attempt_id, round=round_.number)
    except BadKeys as error:
        return str(error)
    if keys.terms_digest != secure.digest_told(round_, round_.attempt.job.spec):  # all others would refuse the round
        return f"{node.name} signs other terms for round {round_.number} than it was sent: update the node."
    return ""


def _clients(round_: Round, **which: Any) -> set[int]:
    """Indices of the clients whose participations are so."""
    return set(round_.participations.filter(**which).values_list("assignment__index", flat=True))

"""The end of a masked round: the survivors unmask the sum of their updates, and of nothing else.

The round is CLOSING, so that the set of its updates is fixed. While its phase is `unmasking` it waits for answers; whoever ends
that phase computes the sum, as whoever moves a plain round to CLOSING does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction

from trainer.secure.messages import MaskingTerms, PublicKeys, Unmasking, UnmaskRound
from webapp.fleet.services import send_to_node
from webapp.jobs import secure
from webapp.jobs.attempts import lose_attempt
from webapp.jobs.models import MaskExchange, Participation, Round
from webapp.jobs.secure_sum import Masks
from webapp.jobs.settling import WORTH_SAYING_AFTER
from webapp.jobs.waiting import set_waiting, waiting

ANSWER_WITHIN = timedelta(seconds=15)
"""How long a round waits for enough answers."""
ASK_AGAIN_AFTER = timedelta(seconds=4)
"""When a survivor that has not answered is asked again: the message, or the answer, may have been lost."""


def ask_survivors(round_: Round, now: datetime) -> None:
    """On commit, tell the clients whose updates are in who they are. Call it in the transaction that moves the round to CLOSING.

    The survivors are read here, behind the lock on the round's row: nobody gets in any more.
    """
    survivors = _survivors(round_)
    _send(round_, survivors, survivors)
    Participation.objects.filter(pk__in=[p.pk for p in survivors]).update(asked_at=now)


def tend_unmasking(round_: Round, now: datetime) -> bool:
    """Do what is due for a round that waits to be unmasked. True: enough have answered, and this caller computes the sum."""
    terms, survivors, answered = _terms_of(round_), _survivors(round_), secure.posted_in(round_)
    assert round_.phase_at is not None
    missing = [p for p in survivors if p.pk not in answered]
    may_answer = [p for p in missing if not secure.is_out_for_good(p)]
    is_over = not may_answer or now - round_.phase_at >= ANSWER_WITHIN
    if len(answered) >= terms.threshold and (is_over or _has_all_shares(round_, terms)):
        same = Round.objects.filter(pk=round_.pk, state=Round.State.CLOSING, phase=Round.Phase.UNMASKING)
        if not same.update(phase="", phase_at=now):
            return False  # another worker computes it
        round_.phase, round_.phase_at = "", now
        return True
    if is_over or len(answered) + len(may_answer) < terms.threshold:
        lose_attempt(attempt=round_.attempt, reason=_shortfall(round_, terms, survivors, missing))
        return False
    if due := [p for p in may_answer if _repeat_is_due(p, now)]:
        with transaction.atomic():
            _send(round_, survivors, due)
    if now - round_.phase_at >= WORTH_SAYING_AFTER:
        names = ", ".join(p.assignment.node.name for p in missing)
        what = f"Round {round_.number} waits for {names} to unmask the sum: {len(answered):,} of {terms.threshold:,} answered."
        then = "The job queues again, and goes on from the last closed round."
        until = round_.phase_at + ANSWER_WITHIN
        set_waiting(round_.attempt.job, waiting(what=what, since=round_.phase_at, until=until, then=then))
    return False


def _has_all_shares(round_: Round, terms: MaskingTerms) -> bool:
    """Whether the answers have enough shares of each secret: a client leaves out those that it could not open."""
    num_shares: Counter[int] = Counter()
    for answer in _answers(secure.read_exchanges(round_, "unmasking")):
        num_shares.update([*answer.self_masks, *answer.masking_keys])
    return all(num_shares[client] >= terms.threshold for client in _shared(round_))


def read_masks(round_: Round) -> Masks | None:
    """What the sum of a round's updates is unmasked with, from the rows alone; None for a plain round, without a query."""
    terms = secure.terms_of(round_)
    if terms is None:
        return None
    exchanges = secure.read_exchanges(round_, "keys", "unmasking")
    return Masks(
        terms=terms,
        roster=[PublicKeys.model_validate(exchange.keys) for exchange in exchanges],
        shared=_shared(round_),
        answers=_answers(exchanges),
    )


def _shared(round_: Round) -> set[int]:
    """The clients whose shares all others got, without reading those."""
    shared = round_.participations.filter(masks__sealed__isnull=False)
    return set(shared.values_list("assignment__index", flat=True))


def _answers(exchanges: Sequence[MaskExchange]) -> list[Unmasking]:
    return [Unmasking.model_validate(e.unmasking) for e in exchanges if e.unmasking is not None]


def _terms_of(round_: Round) -> MaskingTerms:
    terms = secure.terms_of(round_)
    assert terms is not None  # its phase says so
    return terms


def _survivors(round_: Round) -> list[Participation]:
    """The participations whose updates are in, by client index."""
    rows = list(round_.participations.select_related("assignment__node").filter(state=Participation.State.RETURNED))
    for row in rows:
        row.round = round_
    return rows


def _send(round_: Round, survivors: Sequence[Participation], to: Sequence[Participation]) -> None:
    message = UnmaskRound(
        attempt_id=round_.attempt_id, round=round_.number, survivors=[p.assignment.index for p in survivors]
    )
    for participation in to:
        send_to_node(node=participation.assignment.node, message=message)


def _repeat_is_due(participation: Participation, now: datetime) -> bool:
    """Whether to ask a survivor again; of two callers, one does."""
    if now - participation.asked_at < ASK_AGAIN_AFTER:
        return False
    same = Participation.objects.filter(pk=participation.pk, asked_at=participation.asked_at)
    return same.update(asked_at=now) == 1


def _shortfall(
    round_: Round, terms: MaskingTerms, survivors: Sequence[Participation], missing: Sequence[Participation]
) -> str:
    """Such as: Round 3 needed 3 of the 4 clients whose updates are in to unmask their sum, and 2 answered. Missing: node-2 (it restarted)."""
    names = ", ".join(f"{p.assignment.node.name} ({_why_missing(p)})" for p in missing)
    return (
        f"Round {round_.number} needed {terms.threshold:,} of the {len(survivors):,} clients whose updates are in to unmask "
        f"their sum, and {len(survivors) - len(missing):,} answered. Missing: {names}."
    )


def _why_missing(participation: Participation) -> str:
    node = participation.assignment.node
    if node.state != node.State.ONLINE:
        return (node.state_reason or f"it is {node.state}").rstrip(".")
    return "it restarted" if secure.is_out_for_good(participation) else "no answer came"

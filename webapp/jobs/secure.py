"""Secure aggregation: what the server knows of a round whose updates come masked, and what it tells the clients.

A round goes through four phases (Bonawitz et al. 2017, figure 4): keys, shares and updates while it is OPEN, unmasking while
it is CLOSING. What a client has posted lies in its `MaskExchange`. A post is taken in its own phase alone, and by whoever
holds the round's row, so that each move of the phase fixes a set for good: the roster (who has posted keys), the masked
(who has shared), the survivors (whose updates are in). Everything else follows from these rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from trainer.message import Message
from trainer.sections.federated import Federated
from trainer.secure.messages import MaskingTerms, MaskUpdate, PublicKeys, ShareKeys
from trainer.secure.session import MIN_CLIENTS
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from webapp.fleet.models import Node
from webapp.fleet.services import send_to_node
from webapp.jobs.models import Attempt, MaskExchange, Participation, Round

_MASKS = "masking"
"""Where `Round.facts` keeps the round's `MaskingTerms`: a node's facts may change before it is asked again."""

Phase = Round.Phase


def threshold_of(share: float, num_clients: int) -> int:
    """Clients of `num_clients` without whom nothing can be unmasked: more than `share` of them, or all."""
    return min(num_clients, math.floor(share * num_clients) + 1)


def least_clients(federated: Federated, num_asked: int) -> int:
    """Updates that a round of `num_asked` clients needs for its masks; 0 without them."""
    if federated.secure_aggregation is None:
        return 0
    return max(MIN_CLIENTS, threshold_of(federated.secure_aggregation.threshold, num_asked))


def first_phase(attempt: Attempt, spec: JobSpec, drawn: Sequence[int], now: datetime) -> dict[str, Any]:
    """Fields of the row of a round of the clients `drawn` that begins with their keys; none, and no query, without masks.

    An update weighs its rows over the most that any of the nodes has.
    """
    federated = spec.federated
    assert federated is not None
    if federated.secure_aggregation is None:
        return {}
    assignments = attempt.assignments.select_related("node").filter(index__in=drawn)
    num_clients = len(drawn)
    terms = MaskingTerms(
        threshold=threshold_of(federated.secure_aggregation.threshold, num_clients),
        num_clients=num_clients,
        max_examples=max(_num_rows(assignment.node, spec.data.source) for assignment in assignments),
    )
    return {"phase": Phase.KEYS, "phase_at": now, "facts": {_MASKS: terms.model_dump(mode="json")}}


def _num_rows(node: Node, source: str) -> int:
    schemas = [BUILTIN_SOURCES[source]] if source in BUILTIN_SOURCES else node.facts.sources
    return max((schema.num_rows for schema in schemas if schema.name == source), default=1)


def terms_of(round_: Round) -> MaskingTerms | None:
    """What the clients of a round agreed on; None where updates come as they are."""
    terms = round_.facts.get(_MASKS)
    return MaskingTerms.model_validate(terms) if terms else None


def is_exchanging(round_: Round) -> bool:
    """Whether the round waits for keys or shares: no update can be in."""
    return round_.phase in (Phase.KEYS, Phase.SHARES)


def takes_newcomers(round_: Round) -> bool:
    """Whether a client that begins now, such as one whose node is back with nothing in its memory, can be in the round."""
    return round_.phase in ("", Phase.KEYS)


def is_out_for_good(participation: Participation) -> bool:
    """Whether a client's secrets of the round are gone: they lie in its agent's memory alone. Needs `round`, `assignment.node`."""
    node = participation.assignment.node
    if takes_newcomers(participation.round):
        return False
    return node.state == Node.State.REVOKED or node.boot_id != participation.boot_id


def what_follows(participation: Participation) -> str:
    """A sentence to add to the reason for which a node is gone, where it cannot come back into the round; else empty."""
    if not is_out_for_good(participation) or participation.assignment.node.state == Node.State.REVOKED:
        return ""
    number = participation.round.number
    return f" Its masks of round {number} were in its memory: it takes part again in the next round."


# --- the rows ---------------------------------------------------------------------------------------------------------


def read_exchanges(round_: Round) -> list[MaskExchange]:
    """What the round's clients have posted, by client index. Heavy: each has one sealed share for each other."""
    rows = MaskExchange.objects.filter(participation__round=round_)
    return list(rows.select_related("participation__assignment__node").order_by("participation__assignment__index"))


def posted_in(round_: Round) -> set[int]:
    """The participations that have posted what the present phase asks for. One query, and light."""
    rows = MaskExchange.objects.filter(participation__round=round_)
    if round_.phase == Phase.SHARES:
        rows = rows.filter(sealed__isnull=False)
    elif round_.phase == Phase.UNMASKING:
        rows = rows.filter(unmasking__isnull=False)
    return set(rows.values_list("participation", flat=True))


def forget_masks(round_: Round) -> None:
    """Delete what was posted, when the round has ended: it is of no use to anyone, and n^2 shares."""
    if round_.phase_at is not None:
        MaskExchange.objects.filter(participation__round=round_).delete()


# --- the messages -----------------------------------------------------------------------------------------------------


def send_phase(round_: Round, clients: Collection[int] | None = None) -> None:
    """On commit, send the round's clients (or these, by index) what the present phase, shares or updates, asks of them."""
    exchanges = read_exchanges(round_)
    if round_.phase == Phase.UPDATES:  # those who have shared no masks are out
        exchanges = [exchange for exchange in exchanges if exchange.sealed is not None]
    for exchange in exchanges:
        assignment = exchange.participation.assignment
        if clients is None or assignment.index in clients:
            send_to_node(node=assignment.node, message=_message(round_, exchange, exchanges))


def _message(round_: Round, to: MaskExchange, exchanges: list[MaskExchange]) -> Message:
    if round_.phase == Phase.SHARES:
        roster = [PublicKeys.model_validate(exchange.keys) for exchange in exchanges]
        return ShareKeys(attempt_id=round_.attempt_id, round=round_.number, roster=roster)
    receiver = str(to.participation.assignment.index)
    sealed = {
        exchange.participation.assignment.index: exchange.sealed[receiver]
        for exchange in exchanges
        if exchange != to and exchange.sealed is not None
    }
    return MaskUpdate(attempt_id=round_.attempt_id, round=round_.number, sealed=sealed)

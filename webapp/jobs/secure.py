"""Secure aggregation: what the server knows of a round whose updates come masked, and what it tells the clients.

A round goes through four phases (Bonawitz et al. 2017, figure 4): keys, shares and updates while it is OPEN, unmasking while
it is CLOSING. What a client has posted lies in its `MaskExchange`. A post is taken in its own phase alone, and by whoever
holds the round's row, so that each move of the phase fixes a set for good: the roster (who has posted keys), the masked
(who has shared), the survivors (whose updates are in). Everything else follows from these rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from trainer.message import Message
from trainer.sections.federated import Federated
from trainer.secure.agreed import terms_digest, threshold_of
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


def memory_sent(round_: Round, federated: Federated) -> str:
    """The digest of what the strategy remembers, where the clients of a round get it; else empty."""
    return round_.memory_digest if federated.strategy.name == "scaffold" else ""


def digest_told(round_: Round, spec: JobSpec) -> str:
    """What each client of a masked round must say that it was told."""
    terms, federated = terms_of(round_), spec.federated
    assert terms is not None
    assert federated is not None
    return terms_digest(spec, terms, weights=round_.weights_digest, memory=memory_sent(round_, federated))


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


def read_exchanges(round_: Round, *columns: str) -> list[MaskExchange]:
    """What the round's clients have posted, by client index: of `keys`, `sealed` and `unmasking` these columns alone.

    The last two are heavy: each row has a share for each other client.
    """
    rows = MaskExchange.objects.filter(participation__round=round_)
    unread = {"keys", "sealed", "unmasking"}.difference(columns)
    rows = rows.select_related("participation__assignment__node").defer(*unread)
    return list(rows.order_by("participation__assignment__index"))


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
    """On commit, send the round's clients (or these, by index) what the present phase, shares or updates, asks of them.

    It reads all that the clients have posted for it: call it once for all whom it is to reach.
    """
    where = {"attempt_id": round_.attempt_id, "round": round_.number}
    if round_.phase == Phase.SHARES:
        exchanges = read_exchanges(round_, "keys")
        shown = ShareKeys(**where, roster=[PublicKeys.model_validate(exchange.keys) for exchange in exchanges])
        messages: dict[int, Message] = {_index(exchange): shown for exchange in exchanges}
    else:
        exchanges = read_exchanges(round_, "sealed")
        boxes = {_index(exchange): exchange.sealed for exchange in exchanges if exchange.sealed is not None}
        # Those who have shared no masks are out.
        receivers = boxes.keys() if clients is None else boxes.keys() & set(clients)
        messages = {to: MaskUpdate(**where, sealed=_sealed_for(to, boxes)) for to in receivers}
    for exchange in exchanges:
        index = _index(exchange)
        if index in messages and (clients is None or index in clients):
            send_to_node(node=exchange.participation.assignment.node, message=messages[index])


def _index(exchange: MaskExchange) -> int:
    return exchange.participation.assignment.index


def _sealed_for(receiver: int, boxes: Mapping[int, dict[str, str]]) -> dict[int, str]:
    """What each other client has sealed for one."""
    return {sender: sealed[str(receiver)] for sender, sealed in boxes.items() if sender != receiver}

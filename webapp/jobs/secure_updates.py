"""Masked updates at the door: who may deliver one, and what can be checked of what nobody can read."""

from __future__ import annotations

import math
from pathlib import Path

from trainer.federated.check import UpdateRefused
from trainer.protocol import UpdateOffer
from trainer.secure.unmask import check_masked, expected_masked
from trainer.secure.weigh import factor_of
from trainer.weights import Header
from webapp.jobs import secure
from webapp.jobs.models import MaskExchange, Participation, Round


def why_not_taken(participation: Participation) -> str:
    """Why an open round that sums masked updates takes none of this client, or not yet; empty where it does, and for plain ones."""
    round_ = participation.round
    if round_.phase_at is None:
        return ""
    if secure.is_exchanging(round_):
        return f"Round {round_.number} takes no updates yet: it is {what_it_does(round_)}."
    masks = masks_of(participation)
    if masks is None or masks.sealed is None:
        return f"This client shared no masks for round {round_.number}: it takes part again in the next round."
    return ""


def check_masked_update(path: Path, weights: Header, participation: Participation, offer: UpdateOffer) -> None:
    """Raise UpdateRefused unless the file holds the tensors of a masked update, and the offer says what was cut of it, and rows
    and steps by which it can have been weighed: the sum is divided by those of all.

    Needs `round.attempt.job` and `assignment` loaded.
    """
    round_ = participation.round
    spec, terms = round_.attempt.job.spec, secure.terms_of(round_)
    assert spec.federated is not None
    assert terms is not None
    expected = expected_masked(weights, spec.federated)
    check_masked(path, expected)
    num_values = sum(math.prod(shape) for _, shape in expected.values())
    if offer.num_saturated is None or offer.num_saturated > num_values:
        raise UpdateRefused(
            f"A masked update of {num_values:,} parameters says how many were cut to the clip, and this one says "
            f"{offer.num_saturated}: update the node."
        )
    said = {"num_examples": offer.num_examples, "num_steps": offer.num_steps}
    try:
        factor_of(spec, terms, client=participation.assignment.index, **said)
    except ValueError as error:
        raise UpdateRefused(str(error)) from error


def masks_of(participation: Participation) -> MaskExchange | None:
    """What the client has posted for its masks; None where it has posted nothing."""
    try:
        return participation.masks
    except MaskExchange.DoesNotExist:
        return None


def what_it_does(round_: Round) -> str:
    """Such as: exchanging keys; closed."""
    under_way = round_.state in Round.UNDER_WAY and round_.phase
    return (Round.Phase(round_.phase).label if under_way else Round.State(round_.state).label).lower()

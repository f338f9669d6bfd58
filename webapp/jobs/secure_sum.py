"""From the masked updates of a round, and what its clients posted, to their mean. No database."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from trainer.federated.aggregate import Aggregate, ClientUpdate
from trainer.secure.messages import MaskingTerms, PublicKeys, Unmasking
from trainer.spec import JobSpec


@dataclass(frozen=True)
class Masks:
    """The masks of one round, as its clients posted them."""

    terms: MaskingTerms
    roster: Sequence[PublicKeys]
    """Who posted keys, by client index."""
    shared: Set[int]
    """Client indices of those who shared: each update is masked with all of these."""
    answers: Sequence[Unmasking]
    """At least `terms.threshold` of them."""


def unmasked_mean(spec: JobSpec, masks: Masks, updates: Sequence[ClientUpdate]) -> Aggregate:
    """Return what the updates, masked files in order of their clients, come to. The same rows give the same bits.

    Raises ValueError, with a sentence for the job's page, where the answers do not unmask the sum or it makes no mean.
    """
    from trainer.secure.quantise import Quantiser
    from trainer.secure.unmask import unmasked_sum
    from trainer.secure.weigh import mean_of

    assert spec.federated is not None
    assert spec.federated.secure_aggregation is not None
    total = unmasked_sum(
        {update.client: update.path for update in updates},
        masks.roster,
        set(masks.shared),
        [update.client for update in updates],
        masks.answers,
        masks.terms,
    )
    quantiser = Quantiser(masks.terms, spec.federated.secure_aggregation.clip)
    mean = mean_of(spec, masks.terms, quantiser.decode(total), updates)
    num_values = sum(int(values.size) for values in total.values())
    return replace(mean, facts=mean.facts.model_copy(update={"num_values": num_values}))

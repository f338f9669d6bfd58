"""What a securely aggregated update weighs: each client multiplies its own, the server divides the sum. Torch-free.

The server sees sum(w_i * delta_i) with w_i in [0, 1]. Each strategy's own weights (`trainer.federated.weighting`) are these
times one number that is the same for all, so the sum is all that it takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.federated.aggregate import Aggregate, ClientUpdate, RoundUpdates, blocks
from trainer.federated.encoding import blocks_of, sum_of_squares
from trainer.federated.facts import RoundFacts
from trainer.federated.names import VARIATE
from trainer.federated.privacy import clip_factor, gaussian, noise_rng, noise_stds
from trainer.federated.strategy import build_strategy
from trainer.federated.weighting import gradient_effect
from trainer.sections import strategy as options
from trainer.sections.clients import Clients
from trainer.sections.federated import Federated
from trainer.sections.privacy import CentralPrivacy, FixedClip
from trainer.sections.training import SgdOptimizer
from trainer.secure.messages import MaskingTerms
from trainer.secure.quantise import Quantiser
from trainer.spec import JobSpec
from trainer.weights import Weights


def factor_of(spec: JobSpec, terms: MaskingTerms, *, client: int, num_examples: int, num_steps: int) -> float:
    """Return w_i in [0, 1], what a client multiplies its update by before it is quantised.

    By examples: n_i / max_examples. SCAFFOLD and central privacy: 1. Fusion with given weights: the client's over the largest.
    FedNova: n_i / |a_i| over the largest that may occur. Raises ValueError, with a sentence, where it would leave [0, 1].
    """
    if num_examples > terms.max_examples:
        raise ValueError(
            f"Client {client} trained on {num_examples:,} rows, and the data sources were said to have {terms.max_examples:,} at most, "
            "by which secure aggregation weighs: restart the nodes whose files have grown, so that they count them again."
        )
    federated = _federated(spec)
    match federated.strategy:
        case _ if federated.privacy is not None:
            factor = 1.0
        case options.Scaffold():
            factor = 1.0
        case options.Fusion(weights=weights) | options.OneShot(weights=weights) if weights:
            factor = weights[client] / (max(weights) or 1.0)
        case options.FedNova():
            factor = num_examples / _effect(spec, num_steps) / _largest_nova(spec, terms)
        case _:
            factor = num_examples / terms.max_examples
    if not 0 <= factor <= 1 + 1e-12:
        raise ValueError(
            f"Client {client} says that it made {num_steps} steps on {num_examples:,} rows, which is fewer than its batches."
        )
    return min(factor, 1.0)


def _effect(spec: JobSpec, num_steps: int) -> float:
    assert isinstance(spec.training.optimizer, SgdOptimizer)  # the spec refuses others
    if num_steps < 1:
        raise ValueError("FedNova weighs by steps, and the client made none.")
    return gradient_effect(spec.training.optimizer.momentum, num_steps)


def _largest_nova(spec: JobSpec, terms: MaskingTerms) -> float:
    """Return the largest n / |a| of any client: that of a single full batch, as |a| / steps never falls with more steps.

    A batch may have one row more: batch normalisation lets a last row of its own join the batch before it.
    """
    rows = min(spec.training.batch_size + 1, terms.max_examples)
    return rows / _effect(spec, _federated(spec).local_epochs)


def privacy_factor(update: Mapping[str, npt.NDArray[Any]], privacy: CentralPrivacy, quantiser: Quantiser) -> float:
    """Return what a client multiplies its update by so that it is no longer than the clip norm, also once it is rounded.

    In place of the server, which cannot see how long it is (McMahan et al. 2018, algorithm 1): a client that lies can be
    longer, up to `SecureAggregation.clip` in each parameter, and the others' guarantee does not depend on it; its own does.
    Rounding d parameters adds sqrt(d) / 2 steps to the norm at most, which are taken off beforehand. Raises ValueError where
    nothing is left then.
    """
    assert isinstance(privacy.clip, FixedClip)  # the spec refuses the other
    bound = privacy.clip.norm - math.sqrt(sum(values.size for values in update.values())) / (2 * quantiser.step)
    if bound <= 0:
        raise ValueError(
            "The update has so many parameters that rounding them alone exceeds privacy.clip.norm: raise it, or lower "
            "secure_aggregation.clip."
        )
    return clip_factor(math.sqrt(sum(sum_of_squares(blocks_of(values)) for values in update.values())), bound)


def mean_of(spec: JobSpec, terms: MaskingTerms, total: Weights, clients: Sequence[ClientUpdate]) -> Aggregate:
    """Return what the strategy makes of the sum, as it would of the single updates: divided, and with privacy's noise.

    `total` is the decoded sum of the updates of `clients`, float64; it is overwritten, and becomes the result. Single norms are
    nobody's to know. Raises ValueError, with a sentence, where what the clients say gives no weights.
    """
    federated = _federated(spec)
    ordered = sorted(clients, key=lambda update: update.client)
    delta = {name: values for name, values in total.items() if not name.startswith(VARIATE)}
    if federated.privacy is not None:
        return _private_mean(delta, federated.privacy, federated.clients, len(ordered))

    shapes = {name: values.shape for name, values in delta.items()}
    weighting = build_strategy(spec).weigh(RoundUpdates(ordered, federated.encoding, shapes))
    sent = [
        factor_of(spec, terms, client=each.client, num_examples=each.num_examples, num_steps=each.num_steps)
        for each in ordered
    ]
    # The strategy's factors over those that were sent are one number; of the sums, rounding has moved it least.
    _scale(delta, math.fsum(weighting.factors) / math.fsum(sent) / weighting.divisor)
    aggregate = Aggregate(delta=delta, facts=RoundFacts(weights=weighting.shares))
    if federated.strategy.name != "scaffold":
        return aggregate
    variate = {name: total[VARIATE + name] for name in delta}
    _scale(variate, 1 / federated.clients.total)  # as `mean_variate`
    return dataclasses.replace(aggregate, variate=variate)


def _private_mean(delta: Weights, privacy: CentralPrivacy, clients: Clients, num: int) -> Aggregate:
    """As `trainer.federated.private_mean`, of updates that the clients have cut."""
    assert isinstance(privacy.clip, FixedClip)
    sum_std, _ = noise_stds(privacy, clients, privacy.clip.norm)
    noise_std, rng = sum_std / clients.num_drawn, noise_rng()
    _scale(delta, 1 / clients.num_drawn)
    for mean in delta.values():
        flat = mean.reshape(-1)
        for start, stop in blocks(flat.size):
            flat[start:stop] += gaussian(stop - start, noise_std, rng)
    facts = RoundFacts(weights=[1 / num] * num, clip_norm=privacy.clip.norm, noise_std=noise_std)
    return Aggregate(delta=delta, facts=facts)


def _scale(tensors: Weights, factor: float) -> None:
    for values in tensors.values():
        np.multiply(values, factor, out=values)


def _federated(spec: JobSpec) -> Federated:
    assert spec.federated is not None
    return spec.federated

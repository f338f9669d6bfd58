"""What each update of a round weighs, by strategy. Pure, torch-free."""

from __future__ import annotations

import math

import numpy as np

from trainer.federated.aggregate import RoundUpdates, Weigh, Weighting
from trainer.sections import strategy as options
from trainer.sections.training import SgdOptimizer, Training

TINY_LOSS = 1e-10
"""Added to each loss in q-FedAvg, as the authors' code does: a loss of 0 has no power below 1."""


def by_examples(updates: RoundUpdates) -> Weighting:
    """n_i: the mean over all clients' rows (McMahan et al. 2017). Raises ValueError where there are no rows."""
    counts = [update.num_examples for update in updates.clients]
    if sum(counts) <= 0:
        raise ValueError("There is nothing to aggregate: the clients trained on no rows.")
    return Weighting(factors=counts, divisor=sum(counts))


def equally(updates: RoundUpdates) -> Weighting:
    """1 each: the mean over clients."""
    return Weighting(factors=[1] * len(updates), divisor=len(updates))


def build_by_examples(_: options.FedAvg | options.FedProx | options.FedBn, __: Training) -> Weigh:
    """FedAvg, and what differs from it on the clients alone."""
    return by_examples


def build_scaffold(_: options.Scaffold, __: Training) -> Weigh:
    """The mean over the round's clients (Karimireddy et al. 2020, algorithm 1, line 16)."""
    return equally


def build_fednova(_: options.FedNova, training: Training) -> Weigh:
    """FedNova (Wang et al. 2020, equations 8 and 11): tau_eff * sum(p_i * delta_i / |a_i|), tau_eff = sum(p_i * |a_i|).

    p_i are the shares of the examples. |a_i| is how much all gradients of a client together move its weights, in
    learning rates: its number of steps, unless the optimizer has a momentum. tau_eff is what FedAvg would have moved.
    """
    assert isinstance(training.optimizer, SgdOptimizer)  # the spec refuses others
    momentum = training.optimizer.momentum

    def weigh(updates: RoundUpdates) -> Weighting:
        for update in updates.clients:
            if update.num_steps < 1:
                raise ValueError(f"FedNova weighs by steps, and client {update.client} says that it made none.")
        counts = by_examples(updates).factors
        effects = [gradient_effect(momentum, update.num_steps) for update in updates.clients]
        # tau_eff * p_i / |a_i|, with both divisions by the examples' sum moved into the divisor.
        total = sum(counts)
        pull = math.fsum(count * effect for count, effect in zip(counts, effects, strict=True))
        factors = [pull * count / effect for count, effect in zip(counts, effects, strict=True)]
        return Weighting(factors=factors, divisor=float(total) ** 2)

    return weigh


def gradient_effect(momentum: float, num_steps: int) -> float:
    """Return |a|_1 of Wang et al. 2020, section 4.1: the sum of the factors of all gradients in a local update.

    Without momentum that is tau, the number of steps. With momentum rho, each gradient acts on in all later steps:
    (tau - rho * (1 - rho^tau) / (1 - rho)) / (1 - rho).
    """
    return (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)


def build_qfedavg(chosen: options.QFedAvg, training: Training) -> Weigh:
    """q-FedAvg (Li et al. 2020, algorithm 2), with L = 1 / lr of the clients, F_i the loss before training:

    sum(F_i^q * L * delta_i) / sum(q * F_i^(q-1) * |L * delta_i|^2 + L * F_i^q).
    """
    lipschitz = 1 / training.optimizer.lr

    def weigh(updates: RoundUpdates) -> Weighting:
        given = [_loss_before(update.client, update.loss_before) for update in updates.clients]
        largest = max(given)
        # Relative to the largest: above and below, its q-th power cancels, and no power of a loss overflows.
        losses = np.array(given) / largest
        powers = losses**chosen.q
        gradients = np.array(updates.norms) * lipschitz
        steps = chosen.q * losses ** (chosen.q - 1) / largest * gradients**2 + lipschitz * powers
        return Weighting(factors=(lipschitz * powers).tolist(), divisor=float(np.sum(steps)))

    return weigh


def _loss_before(client: int, loss: float | None) -> float:
    if loss is None or not math.isfinite(loss) or loss < 0:
        raise ValueError(f"q-FedAvg weighs by the loss before training, and client {client} says {loss}.")
    return loss + TINY_LOSS


def build_fusion(chosen: options.Fusion | options.OneShot, _: Training) -> Weigh:
    """f = sum(w_i * f_i), with w_i as given, divided by the sum over the clients that returned. None given: by examples."""
    if not chosen.weights:
        return by_examples

    def weigh(updates: RoundUpdates) -> Weighting:
        factors = [chosen.weights[update.client] for update in updates.clients]
        if not sum(factors):
            raise ValueError(
                "The clients that returned all have the weight 0 in strategy.weights: there is nothing to fuse."
            )
        return Weighting(factors=factors, divisor=math.fsum(factors))

    return weigh


def build_fedbuff(chosen: options.FedBuff, _: Training) -> Weigh:
    """FedBuff (Nguyen et al. 2022, algorithm 1 and section 5): sum(s(tau_i) * delta_i) / K over the K updates of the buffer.

    s(tau) = 1 / (1 + tau)^power, tau the rounds by which the update's weights are behind. Fresh updates alone give the plain mean.
    """

    def weigh(updates: RoundUpdates) -> Weighting:
        factors = [(1 + update.staleness) ** -chosen.staleness_power for update in updates.clients]
        return Weighting(factors=factors, divisor=len(updates))

    return weigh

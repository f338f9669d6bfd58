"""Local differential privacy for rows (DP-SGD, Abadi et al. 2016): what the training of a client costs. Torch-free.

The guarantee is (epsilon, delta) for one training row in or out, against whoever sees all updates of the client, the server
included. Each step takes each row by itself with the probability q = batch size / rows (Poisson sampling), cuts its gradient
to a norm C and adds noise of the deviation z * C to the sum. `trainer/federated/private_local.py` trains so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from trainer.federated.privacy import sampled_cost
from trainer.sections.federated import Federated


class Sampling(NamedTuple):
    """How the steps of a client draw its rows."""

    rate: float
    """The chance of each row to be in a step, q."""
    steps: int
    """Steps of an epoch."""


class Cost(NamedTuple):
    """Steps of DP-SGD over the same rows."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def sampling_of(num_rows: int, batch_size: int) -> Sampling:
    """Return how a client of so many rows samples: batches of `batch_size` on average, an epoch's worth of them."""
    return Sampling(min(1.0, batch_size / num_rows), max(1, round(num_rows / batch_size)))


def round_cost(federated: Federated, batch_size: int, num_rows: int) -> Cost:
    """Return what a round costs a client of so many rows. The section has `local_privacy`."""
    assert federated.local_privacy is not None
    rate, steps = sampling_of(num_rows, batch_size)
    return Cost(federated.local_privacy.noise_multiplier, rate, steps * federated.local_epochs)


def epsilon_of(costs: Iterable[Cost], delta: float) -> float:
    """Return epsilon at `delta` of all these steps together; 0 of none, infinite where none can be promised.

    Renyi accounting of the Poisson-sampled Gaussian mechanism (Mironov et al. 2019) by dp-accounting: at each order the
    divergences of all steps add up, whatever their noise and rates.
    """
    total = None
    for cost in costs:
        orders, divergences = sampled_cost(cost.noise_multiplier, cost.sample_rate)
        spent = cost.steps * divergences
        total = spent if total is None else total + spent
    if total is None:
        return 0.0
    from dp_accounting.rdp import compute_epsilon

    epsilon, _ = compute_epsilon(orders, total, delta)
    return float(epsilon) if not math.isnan(epsilon) else math.inf

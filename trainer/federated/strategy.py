"""Strategies: what turns a round's aggregate into the next weights. Pure: `step(state, aggregate) -> state`. Torch-free.

One algorithm, many server optimizers (Reddi et al. 2021, algorithm 1): the mean of the clients' updates is a
pseudo-gradient, and a server optimizer applies it. FedAvg is the case where the update is simply added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.federated.aggregate import Aggregate
from trainer.sections import strategy as options
from trainer.weights import Weights


@dataclass(frozen=True)
class State:
    """What a federated job carries from round to round."""

    weights: Weights
    """The global weights, float32."""
    memory: Mapping[str, Weights] = field(default_factory=dict)
    """What the server optimizer remembers, such as a momentum; empty for FedAvg."""


ServerOptimizer = Callable[[State, Weights], State]
"""Takes the state and the pseudo-gradient (the mean update, float64), and returns the next state."""


@dataclass(frozen=True)
class Strategy:
    """A federated algorithm. Neither function changes its arguments."""

    apply: ServerOptimizer

    def init(self, weights: Weights) -> State:
        """Return the state before the first round."""
        return State(weights=weights)

    def step(self, state: State, aggregate: Aggregate) -> State:
        """Return the state after a round. Raises ValueError where the update's names are not the weights'."""
        if state.weights.keys() != aggregate.delta.keys():
            raise ValueError("The aggregate's tensors are not those of the weights.")
        return self.apply(state, aggregate.delta)


def add_update(state: State, delta: Weights) -> State:
    """w <- w + sum(n_i * delta_i) / sum(n_i): FedAvg (McMahan et al. 2017, algorithm 1), rounded to float32 once."""
    return State(weights={name: (value + delta[name]).astype(np.float32) for name, value in state.weights.items()})


def build_fedavg(_: options.FedAvg) -> Strategy:
    """The mean of the clients' models, weighted by their examples."""
    return Strategy(apply=add_update)


STRATEGIES: dict[str, Callable[[Any], Strategy]] = {"fedavg": build_fedavg}


def build_strategy(chosen: options.Strategy) -> Strategy:
    """Return the strategy that a spec names."""
    return STRATEGIES[chosen.name](chosen)

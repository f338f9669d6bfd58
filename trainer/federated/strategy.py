"""A federated algorithm as a spec describes it: what turns a round's updates into the next weights. Torch-free.

One algorithm in three parts that compose (Reddi et al. 2021, algorithm 1): a strategy weighs the updates, an aggregator
makes one of them, and a server optimizer applies that one as if it were a gradient. FedAvg is where each is the simplest.

Pure: the same state and updates give the same bits. Only privacy's noise differs from call to call, and must.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.federated import weighting
from trainer.federated.aggregate import Aggregate, ClientUpdate, Combine, RoundUpdates, Shapes, Weigh, mean_variate
from trainer.federated.encoding import update_shapes
from trainer.federated.private_mean import private_mean
from trainer.federated.robust import AGGREGATORS
from trainer.federated.server import SERVER_OPTIMIZERS, ServerOptimizer
from trainer.sections.federated import Federated
from trainer.sections.training import Training
from trainer.spec import JobSpec
from trainer.weights import Weights


@dataclass(frozen=True)
class State:
    """What a federated job carries from round to round. Never changed in place."""

    weights: Weights
    """The global weights, float32."""
    memory: Mapping[str, Weights] = field(default_factory=dict)
    """What else the next round needs, by kind: `momentum` and `variance` of the server optimizer, `variate`, the server's
    control variate in SCAFFOLD, all float32 and one tensor for each of the weights; `clip`, privacy's adaptive clip norm, as
    {"norm": (1,) float64}. A kind that is absent is as before the first round."""


@dataclass(frozen=True)
class Strategy:
    """A federated algorithm. No method changes its arguments."""

    federated: Federated
    weigh: Weigh
    combine: Combine
    optimizer: ServerOptimizer

    def init(self, weights: Weights) -> State:
        """Return the state before the first round."""
        return State(weights=weights)

    def aggregate(self, state: State, updates: Sequence[ClientUpdate]) -> Aggregate:
        """Return what the round's updates to `state.weights` come to. They have passed `check_update`.

        Memory: for means, one accumulator of float64; the other rules hold 8 MB of the updates besides. Raises ValueError,
        with a sentence for the job's page, where there are no updates or too few, or what clients say gives no weights.
        """
        given = RoundUpdates(updates, self.federated.encoding, self._shapes(state.weights))
        if self.federated.privacy is not None:
            clip = state.memory.get("clip")
            return private_mean(
                given, self.federated.privacy, self.federated.clients, float(clip["norm"][0]) if clip else None
            )
        aggregate = self.combine(given, self.weigh)
        if self.federated.strategy.name != "scaffold":
            return aggregate
        return dataclasses.replace(aggregate, variate=mean_variate(given, self.federated.clients.total))

    def step(self, state: State, aggregate: Aggregate) -> State:
        """Return the state after a round. Raises ValueError where the weights leave float32's range."""
        if aggregate.delta.keys() != self._shapes(state.weights).keys():
            raise ValueError("The aggregate's tensors are not those of the weights.")
        weights, memory = self.optimizer.apply(state.weights, state.memory, aggregate.delta)
        if aggregate.variate is not None:
            memory["variate"] = _added(state.memory.get("variate"), aggregate.variate)
        if aggregate.clip_norm is not None:
            memory["clip"] = {"norm": np.array([aggregate.clip_norm])}
        return State(weights=weights, memory=memory)

    def _shapes(self, weights: Weights) -> Shapes:
        return update_shapes({name: ("F32", value.shape) for name, value in weights.items()}, self.federated)


def _added(variate: Weights | None, change: Weights) -> Weights:
    with np.errstate(over="ignore"):
        added = {
            name: (value if variate is None else variate[name] + value).astype(np.float32)
            for name, value in change.items()
        }
    for name, value in added.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"SCAFFOLD's control variate of tensor '{name}' became infinite: lower the learning rate of the clients "
                "(training.optimizer.lr)."
            )
    return added


STRATEGIES: dict[str, Callable[[Any, Training], Weigh]] = {
    "fedavg": weighting.build_by_examples,
    "fedprox": weighting.build_by_examples,
    "fedbn": weighting.build_by_examples,
    "scaffold": weighting.build_scaffold,
    "fednova": weighting.build_fednova,
    "qfedavg": weighting.build_qfedavg,
    "fusion": weighting.build_fusion,
    "one_shot": weighting.build_fusion,
    "fedbuff": weighting.build_fedbuff,
}


def build_strategy(spec: JobSpec) -> Strategy:
    """Return the algorithm of a federated spec."""
    federated = spec.federated
    assert federated is not None
    return Strategy(
        federated=federated,
        weigh=STRATEGIES[federated.strategy.name](federated.strategy, spec.training),
        combine=AGGREGATORS[federated.aggregator.name](federated.aggregator),
        optimizer=SERVER_OPTIMIZERS[federated.server_optimizer.name](federated.server_optimizer),
    )

"""How the server applies the aggregated update, as if it were a gradient (Reddi et al. 2021). Pure, torch-free.

All rules are elementwise. They compute in float64, by blocks that stay in the processor's cache; weights and memory are
rounded to float32 once a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.federated.aggregate import blocks
from trainer.sections import strategy as options
from trainer.weights import Weights

Wide = npt.NDArray[np.float64]
Memory = Mapping[str, Weights]
"""Kind, such as momentum, to one tensor for each of the weights. A kind that is absent is as before the first round."""


@dataclass(frozen=True)
class ServerOptimizer:
    """A server optimizer. `apply` changes none of its arguments."""

    rule: Callable[..., tuple[Wide, ...]]
    """(delta, *remembered) -> (step, *remembered from now on); blocks of one shape."""
    before: Mapping[str, float]
    """What it remembers, in the rule's order, with its value before the first round."""

    def apply(self, weights: Weights, memory: Memory, delta: Weights) -> tuple[Weights, dict[str, Weights]]:
        """Return the next weights and memory. Tensors without a delta stay as they are.

        Raises ValueError where a weight leaves float32's range.
        """
        stepped = dict(weights)
        remembered: dict[str, Weights] = {kind: {} for kind in self.before}
        for name, change in delta.items():
            olds = [self._recall(memory, kind, name, change.shape) for kind in self.before]
            stepped[name], *news = self._stepped(name, weights[name], change, olds)
            for kind, new in zip(self.before, news, strict=True):
                remembered[kind][name] = new
        return stepped, remembered

    def _recall(self, memory: Memory, kind: str, name: str, shape: tuple[int, ...]) -> Any:
        if kind in memory:
            return memory[kind][name]
        return np.broadcast_to(np.float64(self.before[kind]), shape)

    def _stepped(self, name: str, weight: Any, delta: Wide, olds: list[Any]) -> list[Any]:
        """Return the next value of one tensor, and of what is remembered for it, float32."""
        sources = [weight.reshape(-1), delta.reshape(-1), *(old.reshape(-1) for old in olds)]
        targets = [np.empty(delta.shape, dtype=np.float32) for _ in range(1 + len(olds))]
        flats = [target.reshape(-1) for target in targets]
        with np.errstate(over="ignore"):
            for start, stop in blocks(delta.size):
                value, *others = (source[start:stop].astype(np.float64, copy=False) for source in sources)
                step, *news = self.rule(*others)
                for flat, new in zip(flats, (value + step, *news), strict=True):
                    flat[start:stop] = new
                    if not np.isfinite(flat[start:stop]).all():
                        raise ValueError(
                            f"Tensor '{name}' became infinite in the server's step: lower the learning rate of the "
                            "clients (training.optimizer.lr) or of the server (federated.server_optimizer.lr)."
                        )
        return targets


def build_sgd(chosen: options.ServerSgd) -> ServerOptimizer:
    """w += lr * delta. With momentum, FedAvgM (Hsu et al. 2019): v = momentum * v + delta; w += lr * v."""

    def plain(delta: Wide) -> tuple[Wide, ...]:
        return (chosen.lr * delta,)

    def rolling(delta: Wide, velocity: Wide) -> tuple[Wide, ...]:
        velocity = chosen.momentum * velocity + delta
        return chosen.lr * velocity, velocity

    return ServerOptimizer(rolling, {"momentum": 0.0}) if chosen.momentum else ServerOptimizer(plain, {})


Measure = Callable[[Wide, Wide], Wide]
"""(variance, squared delta) -> variance."""


def _adaptive(chosen: options.Adaptive, measure: Measure) -> ServerOptimizer:
    """Reddi et al. 2021, algorithm 2: m = beta1 * m + (1 - beta1) * delta; w += lr * m / (sqrt(v) + tau).

    v measures delta^2 and starts at tau^2. There is no correction of the first rounds, as in the paper.
    """

    def rule(delta: Wide, momentum: Wide, variance: Wide) -> tuple[Wide, ...]:
        momentum = chosen.beta1 * momentum + (1 - chosen.beta1) * delta
        variance = measure(variance, delta**2)
        return chosen.lr * momentum / (np.sqrt(variance) + chosen.tau), momentum, variance

    return ServerOptimizer(rule, {"momentum": 0.0, "variance": chosen.tau**2})


def build_adagrad(chosen: options.ServerAdagrad) -> ServerOptimizer:
    """FedAdagrad: v = v + delta^2."""
    return _adaptive(chosen, lambda variance, square: variance + square)


def build_adam(chosen: options.ServerAdam) -> ServerOptimizer:
    """FedAdam: v = beta2 * v + (1 - beta2) * delta^2."""
    return _adaptive(chosen, lambda variance, square: chosen.beta2 * variance + (1 - chosen.beta2) * square)


def build_yogi(chosen: options.ServerYogi) -> ServerOptimizer:
    """FedYogi: v = v - (1 - beta2) * delta^2 * sign(v - delta^2)."""
    return _adaptive(
        chosen, lambda variance, square: variance - (1 - chosen.beta2) * square * np.sign(variance - square)
    )


SERVER_OPTIMIZERS: dict[str, Callable[[Any], ServerOptimizer]] = {
    "sgd": build_sgd,
    "adagrad": build_adagrad,
    "adam": build_adam,
    "yogi": build_yogi,
}

"""What strategies change in a client's training: where it starts, its gradients, and what it sends and keeps besides.

All else is alike: minibatch steps from the global weights (McMahan et al. 2017, algorithm 1, ClientUpdate). What a strategy
changes on the server lies in `trainer/federated/strategy.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.federated.kept import OWN
from trainer.federated.names import VARIATE, is_norm
from trainer.models import load_weights, weights_of
from trainer.sections.strategy import FedProx
from trainer.spec import JobSpec
from trainer.weights import Weights


class Finished(NamedTuple):
    """What a round leaves. All float32."""

    delta: Weights
    """Local minus global weights, of the tensors that travel."""
    beside: Weights
    """What travels beside the delta, as it is."""
    kept: Weights
    """What the client needs in its next round."""


class Local:
    """One round of plain training, as FedAvg, FedNova, q-FedAvg and fusion have it. Made anew for each round."""

    def __init__(self, spec: JobSpec, model: nn.Module, weights: Weights, memory: Weights, kept: Weights) -> None:
        """Bring the model to where the round starts. Raises ValueError where `weights` do not fit it.

        `weights` are the global ones. `memory` is what the server remembers and `kept` what this client kept, both under
        the names of their files; nothing is there before the first round.
        """
        self._model = model
        self._weights = weights
        self._parameters = dict(model.named_parameters())
        load_weights(model, weights)

    def correct_gradients(self) -> None:
        """Change the parameters' gradients before a step."""

    def finish(self, num_steps: int) -> Finished:
        """Return what the round leaves after `num_steps` steps."""
        local = weights_of(self._model)
        return Finished({name: local[name] - value for name, value in self._weights.items()}, {}, {})


class ProximalLocal(Local):
    """FedProx (Li et al. 2020, eq. 2): mu/2 * |w - w_global|^2 is added to the loss, so mu * (w - w_global) to the gradient."""

    def __init__(self, spec: JobSpec, model: nn.Module, weights: Weights, memory: Weights, kept: Weights) -> None:
        super().__init__(spec, model, weights, memory, kept)
        assert spec.federated is not None
        assert isinstance(spec.federated.strategy, FedProx)
        self._mu = spec.federated.strategy.mu
        self._anchors = [(parameter, parameter.detach().clone()) for parameter in self._parameters.values()]

    @torch.no_grad()
    def correct_gradients(self) -> None:
        for parameter, anchor in self._anchors:
            assert parameter.grad is not None
            parameter.grad.add_(parameter - anchor, alpha=self._mu)


class ScaffoldLocal(Local):
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1): y <- y - lr * (g - c_i + c), then option II,

        c_i+ = c_i - c + (x - y) / (K * lr)

    over K steps. What travels is c_i+ - c_i. Running statistics have no gradient: their variates stay 0.
    """

    def __init__(self, spec: JobSpec, model: nn.Module, weights: Weights, memory: Weights, kept: Weights) -> None:
        super().__init__(spec, model, weights, memory, kept)
        self._lr = spec.training.optimizer.lr
        zeros = {name: np.zeros(value.shape, np.float32) for name, value in weights.items()}
        self._server = {name: memory.get(f"variate/{name}", zero) for name, zero in zeros.items()}
        self._own = {name: kept.get(VARIATE + name, zero) for name, zero in zeros.items()}
        self._corrections: list[tuple[nn.Parameter, Tensor]] = [
            (parameter, torch.from_numpy(self._server[name] - self._own[name]).to(parameter.device))
            for name, parameter in self._parameters.items()
        ]

    @torch.no_grad()
    def correct_gradients(self) -> None:
        for parameter, correction in self._corrections:
            assert parameter.grad is not None
            parameter.grad.add_(correction)

    def finish(self, num_steps: int) -> Finished:
        delta = super().finish(num_steps).delta
        change = {
            name: -delta[name] / np.float32(num_steps * self._lr) - self._server[name]
            if name in self._parameters
            else np.zeros_like(delta[name])
            for name in delta
        }
        return Finished(
            delta,
            beside={VARIATE + name: value for name, value in change.items()},
            kept={VARIATE + name: self._own[name] + value for name, value in change.items()},
        )


class OwnNormsLocal(Local):
    """FedBN (Li et al. 2021, algorithm 1): normalisation layers, with their running statistics, stay with the client."""

    def __init__(self, spec: JobSpec, model: nn.Module, weights: Weights, memory: Weights, kept: Weights) -> None:
        own = {name: kept[OWN + name] for name in weights if OWN + name in kept}
        super().__init__(spec, model, weights | own, memory, kept)

    def finish(self, num_steps: int) -> Finished:
        delta = super().finish(num_steps).delta
        return Finished(
            {name: value for name, value in delta.items() if not is_norm(name)},
            beside={},
            kept={OWN + name: value for name, value in weights_of(self._model).items() if is_norm(name)},
        )


LOCALS: dict[str, type[Local]] = {
    "fedavg": Local,
    "fedprox": ProximalLocal,
    "scaffold": ScaffoldLocal,
    "fednova": Local,
    "fedbn": OwnNormsLocal,
    "qfedavg": Local,
    "fusion": Local,
    "one_shot": Local,
    "fedbuff": Local,
}


def start_local(spec: JobSpec, model: nn.Module, weights: Weights, memory: Weights, kept: Weights) -> Local:
    """Return the round of the strategy that a federated spec names, with the model where it starts."""
    assert spec.federated is not None
    return LOCALS[spec.federated.strategy.name](spec, model, weights, memory, kept)

"""The server optimizers against the papers' formulas, computed by hand in exact numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.federated.rounds import floats, strategy_of, weights_of
from trainer.federated.aggregate import Aggregate
from trainer.federated.facts import RoundFacts
from trainer.federated.strategy import State, Strategy
from trainer.weights import BLOCK, map_weights, write_weights


def run(strategy: Strategy, deltas: Sequence[float], start: float = 0.0) -> tuple[list[float], State]:
    """The weight after each round of one update, and the last state."""
    state = strategy.init(weights_of(w=[start]))
    path = []
    for delta in deltas:
        state = strategy.step(state, Aggregate({"w": np.array([delta])}, RoundFacts()))
        path.append(float(state.weights["w"][0]))
    return path, state


def test_fedavgm_by_hand() -> None:
    """Hsu et al. 2019: v = 0.5 v + delta, w += 2 v. Deltas 1, 1, -4: v = 1, 1.5, -3.25."""
    path, state = run(strategy_of(server_optimizer={"name": "sgd", "lr": 2, "momentum": 0.5}), [1, 1, -4])
    assert path == [2, 5, -1.5]
    assert state.memory["momentum"]["w"] == -3.25
    assert set(state.memory) == {"momentum"}


def test_a_smaller_server_rate_goes_part_of_the_way() -> None:
    assert run(strategy_of(server_optimizer={"name": "sgd", "lr": 0.25}), [4, 8])[0] == [1, 3]


def test_fedadagrad_by_hand() -> None:
    """tau = 0.5, so v starts at 1/4. Deltas 1, -2 with lr 1, beta1 0: v = 5/4, 21/4; w += delta / (sqrt(v) + 1/2)."""
    path, state = run(strategy_of(server_optimizer={"name": "adagrad", "lr": 1, "tau": 0.5}), [1, -2])
    first = 1 / (sqrt(1.25) + 0.5)
    assert path == pytest.approx([first, first - 2 / (sqrt(5.25) + 0.5)], rel=1e-6)
    assert state.memory["variance"]["w"] == 5.25


def test_fedadam_by_hand() -> None:
    """beta1 = 0.5, beta2 = 0.75, tau = 0.5, lr = 2. Deltas 4, 4, no correction of the first rounds:

    m = 2, 3; v = 3/4 * 1/4 + 16/4 = 4.1875, 3/4 * 4.1875 + 4 = 7.140625.
    """
    options = {"name": "adam", "lr": 2, "beta1": 0.5, "beta2": 0.75, "tau": 0.5}
    path, state = run(strategy_of(server_optimizer=options), [4, 4])
    first = 2 * 2 / (sqrt(4.1875) + 0.5)
    assert path == pytest.approx([first, first + 2 * 3 / (sqrt(7.140625) + 0.5)], rel=1e-6)
    assert state.memory["momentum"]["w"] == 3
    assert state.memory["variance"]["w"] == 7.140625


def test_fedyogi_by_hand() -> None:
    """beta2 = 0.75, tau = 0.5. v - (1 - beta2) d^2 sign(v - d^2): from 1/4, d = 4: + 4 = 4.25; d = 1: - 1/4 = 4."""
    options = {"name": "yogi", "lr": 1, "beta1": 0, "beta2": 0.75, "tau": 0.5}
    path, state = run(strategy_of(server_optimizer=options), [4, 1])
    first = 4 / (sqrt(4.25) + 0.5)
    assert path == pytest.approx([first, first + 1 / (2 + 0.5)], rel=1e-6)
    assert state.memory["variance"]["w"] == 4


def test_adam_forgets_at_once_with_no_decay() -> None:
    """beta1 = beta2 = 0: each step is lr * d / (|d| + tau), whatever was before."""
    options = {"name": "adam", "lr": 1, "beta1": 0, "beta2": 0, "tau": 1}
    path, _ = run(strategy_of(server_optimizer=options), [3, -1, 7])
    assert path == pytest.approx([3 / 4, 3 / 4 - 1 / 2, 1 / 4 + 7 / 8], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        ({"name": "sgd", "lr": 0.3}, lambda weights: torch.optim.SGD(weights, lr=0.3)),
        ({"name": "sgd", "lr": 0.3, "momentum": 0.9}, lambda weights: torch.optim.SGD(weights, lr=0.3, momentum=0.9)),
        (
            {"name": "adagrad", "lr": 0.3, "tau": 0.01},
            lambda weights: torch.optim.Adagrad(weights, lr=0.3, eps=0.01, initial_accumulator_value=0.01**2),
        ),
    ],
)
def test_the_same_as_torch_on_the_pseudo_gradient(
    options: dict[str, object], optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
) -> None:
    """Where torch has the same rule. It minimises, so its gradient is the update turned round."""
    deltas = np.random.default_rng(0).normal(size=(20, 50))
    weights = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    theirs = optimizer([weights])
    strategy = strategy_of(server_optimizer=options)
    state = strategy.init({"w": np.zeros(50, np.float32)})
    for delta in deltas:
        state = strategy.step(state, Aggregate({"w": delta}, RoundFacts()))
        weights.grad = torch.from_numpy(-delta)
        theirs.step()
    np.testing.assert_allclose(state.weights["w"], weights.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, "adagrad", "adam", "yogi"])
def test_a_saved_state_goes_on_with_the_same_bits(tmp_path: Path, optimizer: object) -> None:
    strategy = strategy_of(server_optimizer=optimizer)
    rng = np.random.default_rng(0)
    deltas = [Aggregate({"w": rng.normal(size=(3, BLOCK))}, RoundFacts()) for _ in range(4)]
    state = saved = strategy.init(weights_of(w=rng.normal(size=(3, BLOCK))))
    for delta in deltas:
        state = strategy.step(state, delta)
        saved = strategy.step(saved, delta)
        memory = {}
        for kind, tensors in saved.memory.items():
            write_weights(tmp_path / kind, tensors)
            memory[kind] = map_weights(tmp_path / kind)
        saved = State(saved.weights, memory)
    assert saved.weights["w"].tobytes() == state.weights["w"].tobytes()
    assert all(tensors["w"].dtype == np.float32 for tensors in state.memory.values())


def test_scalars_and_empty_tensors() -> None:
    strategy = strategy_of(server_optimizer="adam")
    state = strategy.init({"s": floats(1), "e": floats(np.zeros((0, 3)))})
    delta = {"s": np.array(1.0), "e": np.zeros((0, 3))}
    after = strategy.step(state, Aggregate(delta, RoundFacts()))
    assert (after.weights["s"].shape, after.weights["e"].shape) == ((), (0, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_stay_finite_or_the_round_fails(optimizer: str) -> None:
    """float32 ends at 3.4e38; Adam's squares end sooner."""
    with pytest.raises(ValueError, match=r"Tensor 'w' became infinite .* lower the learning rate"):
        run(strategy_of(server_optimizer=optimizer), [3e38], start=3e38)

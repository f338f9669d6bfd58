"""The parts together: purity, identities, FedBN and SCAFFOLD by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.federated.rounds import aggregate_of, floats, strategy_of, weights_of, write_updates
from trainer.federated.aggregate import Aggregate
from trainer.federated.facts import RoundFacts
from trainer.federated.strategy import State

FEDAVG = strategy_of()
RNG = np.random.default_rng(0)


def moved_by(**delta: list[float]) -> Aggregate:
    return Aggregate({name: np.array(value) for name, value in delta.items()}, RoundFacts())


def test_fedavg_by_hand(tmp_path: Path) -> None:
    # w = (1, 2); deltas (4, 0) of 1 example and (0, -8) of 3: w + ((4, 0) + (0, -24)) / 4.
    start = FEDAVG.init(weights_of(w=[1, 2]))
    state = FEDAVG.step(start, aggregate_of(tmp_path, FEDAVG, [[4, 0], [0, -8]], num_examples=[1, 3]))
    np.testing.assert_array_equal(state.weights["w"], floats([2, -4]), strict=True)
    assert not state.memory


def test_the_step_is_pure() -> None:
    for strategy in (FEDAVG, strategy_of(server_optimizer="yogi")):
        state, aggregate = strategy.init(weights_of(w=[1.0])), moved_by(w=[0.5])
        first = strategy.step(state, aggregate)
        second, again = strategy.step(first, aggregate), strategy.step(first, aggregate)
        assert second.weights["w"].tobytes() == again.weights["w"].tobytes()
        assert strategy.step(state, aggregate).weights["w"] == first.weights["w"]
        assert (float(state.weights["w"][0]), float(aggregate.delta["w"][0])) == (1.0, 0.5)
        assert not state.memory


def test_no_update_no_change() -> None:
    weights = weights_of(w=RNG.normal(size=100))
    for optimizer in ("sgd", "adagrad", "adam", "yogi"):
        strategy = strategy_of(server_optimizer=optimizer)
        state = strategy.step(strategy.init(weights), moved_by(w=[0.0] * 100))
        np.testing.assert_array_equal(state.weights["w"], weights["w"], strict=True)


def test_rounded_once() -> None:
    """The mean meets the weights in float64: 1 + 2^-25 + 2^-25 would be 1 if either were rounded first."""
    state = FEDAVG.step(FEDAVG.init(weights_of(w=[1.0])), moved_by(w=[2**-24 + 2**-25]))
    assert state.weights["w"][0] == np.float32(1 + 2**-23)


def test_other_tensors_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="not those of the weights"):
        FEDAVG.step(FEDAVG.init(weights_of(w=[0])), moved_by(v=[0.0]))


@pytest.mark.parametrize(
    "parts",
    [
        {"strategy": {"name": "fedprox", "mu": 0}},
        {"server_optimizer": {"name": "sgd", "lr": 1, "momentum": 0}},
        {"strategy": {"name": "fusion"}},
        {"aggregator": {"name": "norm_bound", "max_norm": 1e9}},
        {"strategy": "fednova"},  # of clients that make the same number of steps
    ],
)
def test_what_is_fedavg_in_disguise(tmp_path: Path, parts: dict[str, Any]) -> None:
    deltas = RNG.normal(size=(3, 50))
    said: dict[str, Any] = {"num_examples": [3, 5, 9], "num_steps": [4, 4, 4]}
    plain = aggregate_of(tmp_path, FEDAVG, list(deltas), **said)
    strategy = strategy_of(**parts)
    other = aggregate_of(tmp_path, strategy, list(deltas), **said)
    np.testing.assert_allclose(other.delta["w"], plain.delta["w"], rtol=1e-14)
    start = FEDAVG.init(weights_of(w=RNG.normal(size=50)))
    np.testing.assert_array_equal(strategy.step(start, other).weights["w"], FEDAVG.step(start, plain).weights["w"])


@pytest.mark.parametrize(
    "aggregator", ["mean", "norm_bound", "median", {"name": "krum", "attackers": 0}, {"name": "bulyan", "attackers": 0}]
)
def test_equal_updates_come_to_that_update(tmp_path: Path, aggregator: object) -> None:
    delta = floats(RNG.normal(size=20) / 10)
    total = aggregate_of(tmp_path, strategy_of(5, aggregator=aggregator), [delta] * 5)
    np.testing.assert_array_equal(total.delta["w"].astype(np.float32), delta, strict=True)


def test_one_step_of_all_clients_is_one_step_on_the_union(tmp_path: Path) -> None:
    """Least squares; each client makes one step on all of its rows, so the mean by rows is the union's step."""
    lr, start = 0.1, RNG.normal(size=4)
    x, y = RNG.normal(size=(30, 4)), RNG.normal(size=30)

    def step(rows: slice) -> np.ndarray:
        return np.asarray(-lr * 2 * x[rows].T @ (x[rows] @ start - y[rows]) / len(y[rows]))

    parts = [slice(0, 5), slice(5, 12), slice(12, 30)]
    total = aggregate_of(tmp_path, FEDAVG, [step(rows) for rows in parts], num_examples=[5, 7, 18])
    np.testing.assert_allclose(total.delta["w"], step(slice(0, 30)), rtol=1e-6)


def test_fedbn_leaves_norm_layers_alone(tmp_path: Path) -> None:
    strategy = strategy_of(strategy="fedbn", server_optimizer="adam")
    weights = weights_of(**{"0.weight": [1, 2], "norm1.weight": [3, 4]})
    updates = write_updates(tmp_path, [{"0.weight": [1, 1]}, {"0.weight": [3, 3]}])
    aggregate = strategy.aggregate(State(weights), updates)
    assert set(aggregate.delta) == {"0.weight"}
    after = strategy.step(State(weights), aggregate)
    assert after.weights["norm1.weight"].tobytes() == weights["norm1.weight"].tobytes()
    assert set(after.weights) == set(weights)
    assert set(after.memory["momentum"]) == {"0.weight"}

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.federated.aggregate import Aggregate, ClientUpdate, aggregate_updates
from trainer.federated.strategy import build_strategy
from trainer.sections.strategy import FedAvg
from trainer.weights import write_weights

FEDAVG = build_strategy(FedAvg(name="fedavg"))


def aggregate_of(**delta: list[float]) -> Aggregate:
    return Aggregate({name: np.array(value) for name, value in delta.items()}, num_examples=1, num_clients=1)


def test_fedavg_by_hand(tmp_path: Path) -> None:
    # w = (1, 2); deltas (4, 0) of 1 example and (0, -8) of 3: w + ((4, 0) + (0, -24)) / 4.
    for name, delta in (("a", [4, 0]), ("b", [0, -8])):
        write_weights(tmp_path / name, {"w": np.array(delta, np.float32)})
    aggregate = aggregate_updates([ClientUpdate(tmp_path / "a", 1), ClientUpdate(tmp_path / "b", 3)])
    state = FEDAVG.step(FEDAVG.init({"w": np.array([1, 2], np.float32)}), aggregate)
    np.testing.assert_array_equal(state.weights["w"], np.array([2, -4], np.float32), strict=True)
    assert not state.memory


def test_the_step_is_pure() -> None:
    state = FEDAVG.init({"w": np.array([1.0], np.float32)})
    aggregate = aggregate_of(w=[0.5])
    first, second = FEDAVG.step(state, aggregate), FEDAVG.step(state, aggregate)
    assert first.weights["w"] == second.weights["w"] == 1.5
    assert state.weights["w"] == 1.0
    assert aggregate.delta["w"] == 0.5


def test_no_update_no_change() -> None:
    weights = {"w": np.random.default_rng(0).normal(size=100).astype(np.float32)}
    state = FEDAVG.step(FEDAVG.init(weights), aggregate_of(w=[0.0] * 100))
    np.testing.assert_array_equal(state.weights["w"], weights["w"], strict=True)


def test_rounded_once() -> None:
    """The mean meets the weights in float64: 1 + 2^-25 + 2^-25 would be 1 if either were rounded first."""
    step = aggregate_of(w=[2**-24 + 2**-25])
    state = FEDAVG.step(FEDAVG.init({"w": np.array([1.0], np.float32)}), step)
    assert state.weights["w"][0] == np.float32(1 + 2**-23)


def test_other_tensors_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="not those of the weights"):
        FEDAVG.step(FEDAVG.init({"w": np.zeros(1, np.float32)}), aggregate_of(v=[0.0]))

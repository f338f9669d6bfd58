"""What updates weigh, by hand from the papers' formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.federated.rounds import aggregate_of, strategy_of, write_updates
from trainer.federated.weighting import gradient_effect


def test_fednova_by_hand(tmp_path: Path) -> None:
    """p = (1/4, 3/4), steps (2, 6): tau_eff = 1/4 * 2 + 3/4 * 6 = 5.

    5 * (1/4 * (4, 0) / 2 + 3/4 * (0, 12) / 6) = (2.5, 7.5).
    """
    total = aggregate_of(
        tmp_path, strategy_of(strategy="fednova"), [[4, 0], [0, 12]], num_examples=[1, 3], num_steps=[2, 6]
    )
    np.testing.assert_allclose(total.delta["w"], [2.5, 7.5], rtol=1e-15)
    # Their factors are 5/8 and 5/8.
    assert total.facts.weights == pytest.approx([0.5, 0.5], rel=1e-15)


def test_fednova_ends_where_the_steps_do_not_matter(tmp_path: Path) -> None:
    """Two clients with the gradients +1 and -1: their sum is no direction, however many steps each makes. FedAvg drifts."""
    said: dict[str, Any] = {"num_examples": [10, 10], "num_steps": [1, 9]}
    deltas = [[1.0], [-9.0]]
    assert aggregate_of(tmp_path, strategy_of(strategy="fednova"), deltas, **said).delta["w"] == pytest.approx(
        0, abs=1e-15
    )
    assert aggregate_of(tmp_path, strategy_of(), deltas, **said).delta["w"] == -4


@settings(deadline=None)
@given(st.floats(0, 0.99), st.integers(1, 60))
def test_the_effect_of_momentum(momentum: float, num_steps: int) -> None:
    """A unit gradient at each step, through the momentum buffer as torch's SGD keeps it."""
    moved = buffer = 0.0
    for _ in range(num_steps):
        buffer = momentum * buffer + 1
        moved += buffer
    assert gradient_effect(momentum, num_steps) == pytest.approx(moved, rel=1e-9)


def test_fednova_with_momentum_by_hand(tmp_path: Path) -> None:
    """Momentum 1/2: one step counts 1, two steps 1.5 + 1 = 2.5. tau_eff = 1.75 for equal examples."""
    strategy = strategy_of(strategy="fednova", training={"optimizer": {"name": "sgd", "momentum": 0.5}})
    total = aggregate_of(tmp_path, strategy, [[8, 0], [0, 10]], num_steps=[1, 2])
    np.testing.assert_allclose(total.delta["w"], [1.75 * 8 / 2, 1.75 * 10 / 2.5 / 2], rtol=1e-14)


def test_fednova_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="client 1 says that it made none"):
        aggregate_of(tmp_path, strategy_of(strategy="fednova"), [[1.0], [1.0]], num_steps=[1, 0])


def qfedavg(q: float, lr: float = 0.5) -> dict[str, Any]:
    return {"strategy": {"name": "qfedavg", "q": q}, "training": {"optimizer": {"name": "sgd", "lr": lr}}}


def test_qfedavg_by_hand(tmp_path: Path) -> None:
    """q = 1, lr = 1/2, so L = 2; losses 1 and 3; deltas (3, 0) and (0, 4), so |L delta|^2 = 36 and 64.

    h = 1 * 1 * 36 + 2 * 1 = 38 and 1 * 1 * 64 + 2 * 3 = 70; (1 * 2 * (3, 0) + 3 * 2 * (0, 4)) / 108.
    """
    total = aggregate_of(tmp_path, strategy_of(**qfedavg(1)), [[3, 0], [0, 4]], loss_before=[1.0, 3.0])
    np.testing.assert_allclose(total.delta["w"], [6 / 108, 24 / 108], rtol=1e-8)
    assert total.facts.weights == pytest.approx([1 / 4, 3 / 4], rel=1e-8)


def test_qfedavg_of_half_by_hand(tmp_path: Path) -> None:
    """q = 1/2, lr = 1, losses 4 and 1/4: F^q = 2 and 1/2; F^(q-1) = 1/2 and 2; |delta|^2 = 4 and 1.

    h = 1/2 * 1/2 * 4 + 2 = 3 and 1/2 * 2 * 1 + 1/2 = 1.5.
    """
    total = aggregate_of(tmp_path, strategy_of(**qfedavg(0.5, lr=1)), [[2, 0], [0, 1]], loss_before=[4.0, 0.25])
    np.testing.assert_allclose(total.delta["w"], [2 * 2 / 4.5, 0.5 * 1 / 4.5], rtol=1e-8)


def test_qfedavg_of_zero_weighs_equally(tmp_path: Path) -> None:
    total = aggregate_of(
        tmp_path, strategy_of(**qfedavg(0)), [[3, 0], [0, 9]], loss_before=[5.0, 0.1], num_examples=[1, 100]
    )
    np.testing.assert_allclose(total.delta["w"], [1.5, 4.5], rtol=1e-15)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [0.0, 1e-30], [1e300, 1e-300], [0.0, 1e30]])
@pytest.mark.parametrize("q", [0.2, 1, 20])
def test_qfedavg_stays_finite(tmp_path: Path, losses: list[float], q: float) -> None:
    total = aggregate_of(tmp_path, strategy_of(**qfedavg(q)), [[3, 0], [0, 4]], loss_before=losses)
    assert np.isfinite(total.delta["w"]).all()
    assert math.fsum(total.facts.weights or []) == pytest.approx(1)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -1.0])
def test_qfedavg_needs_every_loss(tmp_path: Path, loss: float | None) -> None:
    with pytest.raises(ValueError, match="client 1 says"):
        aggregate_of(tmp_path, strategy_of(**qfedavg(1)), [[1.0], [1.0]], loss_before=[1.0, loss])


@pytest.mark.parametrize("name", ["fusion", "one_shot"])
def test_fusion_with_given_weights(tmp_path: Path, name: str) -> None:
    """f = sum(w_i * f_i), the weights over their sum, and examples aside: (1 * 8 + 3 * 16 + 0 * 99) / 4."""
    strategy = strategy_of(strategy={"name": name, "weights": [1, 3, 0]})
    total = aggregate_of(tmp_path, strategy, [[8], [16], [99]], num_examples=[9, 5, 1])
    assert total.delta["w"] == 14
    assert total.facts.weights == [0.25, 0.75, 0]


def test_fusion_is_the_fusion_of_the_models(tmp_path: Path) -> None:
    """The mean of deltas added to the weights they began from is the mean of the models."""
    strategy = strategy_of(strategy={"name": "fusion", "weights": [1, 3, 4]})
    start = np.array([1, -1], np.float32)
    models = np.array([[2, 0], [4, 8], [-2, 1]], np.float32)
    state = strategy.init({"w": start})
    state = strategy.step(state, aggregate_of(tmp_path, strategy, list(models - start), state))
    np.testing.assert_array_equal(state.weights["w"], (models[0] + 3 * models[1] + 4 * models[2]) / 8, strict=True)


def test_fusion_of_those_that_returned(tmp_path: Path) -> None:
    """Client 1 is missing: the weights of the others are divided by their own sum, and go by client, not by place."""
    strategy = strategy_of(strategy={"name": "fusion", "weights": [1, 5, 3]})
    updates = write_updates(tmp_path, [{"w": [8.0]}, {"w": [0.0]}, {"w": [16.0]}])
    total = strategy.aggregate(strategy.init({"w": np.zeros(1, np.float32)}), [updates[2], updates[0]])
    assert total.delta["w"] == 14


def test_fusion_of_weightless_clients_is_refused(tmp_path: Path) -> None:
    strategy = strategy_of(strategy={"name": "fusion", "weights": [0, 0, 1]})
    with pytest.raises(ValueError, match=r"all have the weight 0 in strategy.weights"):
        aggregate_of(tmp_path, strategy, [[1.0], [1.0]])

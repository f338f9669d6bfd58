"""Central privacy inside a round: what is clipped, added, divided and remembered. Its noise is new at each call."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.federated.rounds import aggregate_of, strategy_of, weights_of
from trainer.federated.aggregate import Aggregate
from trainer.federated.facts import RoundFacts
from trainer.federated.strategy import State, Strategy

NEARLY_NONE = 1e-6
"""Least noise multiplier that a spec may ask for."""


def private(num: int = 4, noise: float = NEARLY_NONE, norm: float = 5, **parts: Any) -> Strategy:
    privacy = {"clip": {"name": "fixed", "norm": norm}, "noise_multiplier": noise}
    return strategy_of(num, privacy=privacy, **parts)


def adaptive(num: int = 20, quantile: float = 0.5) -> Strategy:
    clip = {"name": "adaptive", "initial_norm": 2, "quantile": quantile, "rate": 0.2}
    return strategy_of(num, privacy={"clip": clip, "noise_multiplier": NEARLY_NONE})


def test_clipped_and_divided_by_those_expected(tmp_path: Path) -> None:
    """Norms 10 and 1 with the bound 5: ((3, 4) + (0, 1)) / 4, for four clients of whom two returned; examples aside."""
    total = aggregate_of(tmp_path, private(), [[6, 8], [0, 1]], num_examples=[1000, 1])
    np.testing.assert_allclose(total.delta["w"], [0.75, 1.25], atol=1e-4)
    facts = total.facts
    assert (facts.norms, facts.num_clipped, facts.clip_norm, facts.weights) == ([10, 1], 1, 5, [0.5, 0.5])
    assert facts.noise_std == pytest.approx(NEARLY_NONE * 5 / 4)
    assert total.clip_norm is None
    assert facts.epsilon is None


def test_no_client_moves_the_result_further_than_promised(tmp_path: Path) -> None:
    """With one more client, the sum before the noise moves by at most the clip norm: the accountant rests on that."""
    rng = np.random.default_rng(0)
    deltas = list(rng.normal(size=(4, 30)) * [[0.1], [1], [10], [1000]])
    with_it = aggregate_of(tmp_path, private(), deltas).delta["w"]
    without = aggregate_of(tmp_path, private(), deltas[:3]).delta["w"]
    assert 4 * np.linalg.norm(with_it - without) == pytest.approx(5, rel=1e-3)


def test_the_noise_is_as_large_as_said(tmp_path: Path) -> None:
    """On 200,000 coordinates: mean 0, standard deviation 2 * 5 / 4, each within five standard errors."""
    size = 200_000
    total = aggregate_of(tmp_path, private(noise=2), [np.zeros(size), np.zeros(size)])
    std = total.facts.noise_std
    assert std == 2.5
    assert abs(total.delta["w"].mean()) < 5 * std / math.sqrt(size)
    assert abs(total.delta["w"].std() / std - 1) < 5 / math.sqrt(2 * size)
    assert np.abs(np.corrcoef(total.delta["w"][:-1], total.delta["w"][1:])[0, 1]) < 5 / math.sqrt(size)


def test_nobody_can_draw_the_same_noise_again(tmp_path: Path) -> None:
    strategy = private(noise=1)
    first, second = (aggregate_of(tmp_path, strategy, [np.zeros(10)] * 2) for _ in range(2))
    assert (first.delta["w"] != second.delta["w"]).all()


def test_the_adaptive_norm_follows_the_quantile(tmp_path: Path) -> None:
    """With 20 clients, 15 of them short, the share is 0.75: C = 2 * exp(-0.2 * (0.75 - 0.5)), give or take the count's noise.

    That has the standard deviation 1/20, so five of them leave a share between 0.5 and 1.
    """
    strategy = adaptive()
    deltas = [[1.0]] * 15 + [[3.0]] * 5
    total = aggregate_of(tmp_path, strategy, deltas)
    assert (total.facts.clip_norm, total.facts.num_clipped) == (2, 5)
    assert total.clip_norm is not None
    assert -0.2 * (1 - 0.5) < math.log(total.clip_norm / 2) < 0

    state = strategy.step(strategy.init(weights_of(w=[0])), total)
    assert state.memory["clip"]["norm"].tolist() == [total.clip_norm]
    following = aggregate_of(tmp_path, strategy, deltas, state)
    assert following.facts.clip_norm == total.clip_norm


def test_the_adaptive_norm_finds_the_quantile(tmp_path: Path) -> None:
    """Norms 1 to 20 and the quantile 0.5: from 2, the norm comes to rest around 10."""
    strategy = adaptive()
    state = strategy.init(weights_of(w=[0]))
    norms = []
    for _ in range(60):
        total = aggregate_of(tmp_path, strategy, [[float(norm)] for norm in range(1, 21)], state)
        state = State(state.weights, strategy.step(state, total).memory)
        norms.append(total.clip_norm or 0.0)
    assert 8 < np.mean(norms[-30:]) < 13


def test_a_fixed_norm_is_not_remembered() -> None:
    strategy = private()
    state = strategy.step(strategy.init(weights_of(w=[0])), Aggregate({"w": np.array([1.0])}, RoundFacts()))
    assert not state.memory


def test_composes_with_a_server_optimizer(tmp_path: Path) -> None:
    strategy = private(strategy={"name": "fedprox", "mu": 0.1}, server_optimizer={"name": "sgd", "momentum": 0.9})
    state = strategy.init(weights_of(w=[0, 0]))
    state = strategy.step(state, aggregate_of(tmp_path, strategy, [[6, 8], [0, 1]], state))
    np.testing.assert_allclose(state.memory["momentum"]["w"], [0.75, 1.25], atol=1e-4)

"""Two of eleven clients lie while real digits are learnt: the mean breaks, the robust rules do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits

from tests.trainer.federated.rounds import aggregate_of, strategy_of

Array = npt.NDArray[np.float64]
CLIENTS, LIARS, ROUNDS = 11, 2, 10
ROBUST: dict[str, dict[str, object]] = {
    "norm_bound": {"name": "norm_bound", "max_norm": 1.0},
    "median": {"name": "median"},
    "trimmed_mean": {"name": "trimmed_mean", "trim": 0.2},
    "krum": {"name": "krum", "attackers": LIARS},
    "multi_krum": {"name": "krum", "attackers": LIARS, "select": 7},
    "bulyan": {"name": "bulyan", "attackers": LIARS},
}


def flip(honest: Array) -> Array:
    """Ten times the way back."""
    return np.repeat(-10 * honest.mean(axis=0, keepdims=True), LIARS, axis=0)


def scale(honest: Array) -> Array:
    """Noise a hundred times as long as any honest update."""
    return 100 * np.random.default_rng(1).normal(size=(LIARS, *honest.shape[1:]))


def collude(honest: Array, deviations: float = 40) -> Array:
    """Baruch et al. 2019: both say the honest mean less some standard deviations of each coordinate."""
    return np.repeat((honest.mean(axis=0) - deviations * honest.std(axis=0))[None], LIARS, axis=0)


@cache
def digits() -> tuple[Array, npt.NDArray[np.int64], Array, npt.NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = np.hstack([x / 16, np.ones((len(y), 1))])[order], y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def train(start: Array, x: Array, y: npt.NDArray[np.int64]) -> Array:
    """Softmax regression, 20 steps of gradient descent. start: (65, 10)."""
    weights = start.astype(np.float64)
    for _ in range(20):
        scores = x @ weights
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[np.arange(len(y)), y] -= 1
        weights -= 0.5 * x.T @ chances / len(y)
    return weights


def accuracy_after(folder: Path, aggregator: dict[str, object], attack: Callable[[Array], Array] | None) -> float:
    x, y, test_x, test_y = digits()
    strategy = strategy_of(CLIENTS, aggregator=aggregator)
    state = strategy.init({"w": np.zeros((65, 10), np.float32)})
    for _ in range(ROUNDS):
        start = state.weights["w"]
        shares = np.array_split(np.arange(len(y)), CLIENTS)
        deltas = np.array([train(start, x[rows], y[rows]) - start for rows in shares])
        if attack:
            deltas[:LIARS] = attack(deltas[LIARS:])
        state = strategy.step(state, aggregate_of(folder, strategy, list(deltas), state))
    return float(((test_x @ state.weights["w"]).argmax(axis=1) == test_y).mean())


@pytest.mark.parametrize("attack", [flip, scale, collude])
def test_the_mean_breaks(tmp_path: Path, attack: Callable[[Array], Array]) -> None:
    assert accuracy_after(tmp_path, {"name": "mean"}, None) > 0.93
    assert accuracy_after(tmp_path, {"name": "mean"}, attack) < 0.8


@pytest.mark.parametrize("attack", [flip, scale, collude])
@pytest.mark.parametrize("rule", ROBUST)
def test_robust_rules_hold(tmp_path: Path, rule: str, attack: Callable[[Array], Array]) -> None:
    """Krum learns from one client's rows a round, so it learns less, attacked or not."""
    assert accuracy_after(tmp_path, ROBUST[rule], attack) > (0.89 if rule == "krum" else 0.92)


@pytest.mark.parametrize("rule", ROBUST)
def test_a_little_moves_them_little(tmp_path: Path, rule: str) -> None:
    """The attack as published, 1.5 deviations: it hides among the honest, so the rules cannot see it, but need not fear it.

    On average no coordinate moves further from the honest mean than honest clients differ.
    """
    honest = np.random.default_rng(0).normal(1, 0.1, size=(CLIENTS - LIARS, 50))
    deltas = np.vstack([collude(honest, 1.5), honest])
    found = aggregate_of(tmp_path, strategy_of(CLIENTS, aggregator=ROBUST[rule]), list(deltas)).delta["w"]
    if rule == "norm_bound":
        found = found * np.linalg.norm(honest.mean(axis=0)) / np.linalg.norm(found)
    assert np.abs(found - honest.mean(axis=0)).mean() < 1.5 * honest.std(axis=0).mean()

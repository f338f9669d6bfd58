"""Strategies, aggregators and server optimizers compose: each does its part, whatever the others are."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.trainer.federated.rounds import aggregate_of, strategy_of, weights_of
from trainer.federated.robust import AGGREGATORS
from trainer.federated.server import SERVER_OPTIMIZERS
from trainer.federated.strategy import STRATEGIES, State

CLIENTS, ROUNDS = 7, 3
STRATEGY_OPTIONS: dict[str, dict[str, Any]] = {"fusion": {"weights": [1, 2, 3, 4, 5, 6, 7]}}
ROBUST = AGGREGATORS.keys() - {"mean"}
ONLY_MEAN = {"scaffold", "fednova", "qfedavg", "fusion", "one_shot", "fedbuff"}
ONLY_SGD = {"scaffold", "fusion", "one_shot"}
COMPOSE = [
    parts
    for parts in product(sorted(STRATEGIES), AGGREGATORS, SERVER_OPTIMIZERS)
    if not (parts[0] in ONLY_MEAN and parts[1] in ROBUST) and not (parts[0] in ONLY_SGD and parts[2] != "sgd")
]
RNG = np.random.default_rng(0)
DELTAS = RNG.normal(size=(ROUNDS, CLIENTS, 6)).astype(np.float32)
VARIATES = [{"w": RNG.normal(size=6)} for _ in range(CLIENTS)]
SAID = {"num_examples": range(1, 8), "num_steps": range(3, 10), "loss_before": np.linspace(0.1, 2, CLIENTS).tolist()}


def run(folder: Path, strategy: str, aggregator: str, optimizer: str) -> tuple[list[np.ndarray], State]:
    """The aggregated update of each round, and the last state."""
    composed = strategy_of(
        CLIENTS,
        strategy={"name": strategy, **STRATEGY_OPTIONS.get(strategy, {})},
        aggregator=aggregator,
        server_optimizer={"name": optimizer, "lr": 1.0},
    )
    state, path = composed.init(weights_of(w=np.zeros(6))), []
    for deltas in DELTAS:
        variates = VARIATES if strategy == "scaffold" else None
        total = aggregate_of(folder, composed, list(deltas), state, variates=variates, **SAID)
        path.append(total.delta["w"])
        state = composed.step(state, total)
    return path, state


@pytest.mark.parametrize(("strategy", "aggregator", "optimizer"), COMPOSE)
def test_each_part_does_its_own(tmp_path: Path, strategy: str, aggregator: str, optimizer: str) -> None:
    path, state = run(tmp_path, strategy, aggregator, optimizer)
    # Updates come to the same, whoever applies them.
    plain, _ = run(tmp_path, strategy, aggregator, "sgd")
    assert [step.tobytes() for step in path] == [step.tobytes() for step in plain]
    # They are applied alike, whatever made them.
    alone = strategy_of(server_optimizer={"name": optimizer, "lr": 1.0})
    fed = alone.init(weights_of(w=np.zeros(6)))
    for step in path:
        fed = alone.step(fed, aggregate_of(tmp_path, alone, [step]))
    np.testing.assert_allclose(state.weights["w"], fed.weights["w"], rtol=1e-4, atol=1e-6)
    # Again, to the last bit.
    _, again = run(tmp_path, strategy, aggregator, optimizer)
    assert again.weights["w"].tobytes() == state.weights["w"].tobytes()
    assert set(state.memory) == set(fed.memory) | ({"variate"} if strategy == "scaffold" else set())


@pytest.mark.parametrize(("strategy", "aggregator"), sorted(product(ONLY_MEAN, ROBUST)))
def test_what_needs_the_mean_says_so(strategy: str, aggregator: str) -> None:
    with pytest.raises(ValidationError, match="set aggregator to mean"):
        strategy_of(CLIENTS, strategy=strategy, aggregator=aggregator)


@pytest.mark.parametrize(("strategy", "optimizer"), sorted(product(ONLY_SGD, SERVER_OPTIMIZERS.keys() - {"sgd"})))
def test_what_needs_plain_server_steps_says_so(strategy: str, optimizer: str) -> None:
    with pytest.raises(ValidationError, match="set server_optimizer to sgd"):
        strategy_of(CLIENTS, strategy=strategy, server_optimizer=optimizer)


@pytest.mark.parametrize(
    ("aggregator", "num", "sentence"),
    [
        ({"name": "trimmed_mean", "trim": 0.2}, 4, "needs at least 5 clients a round"),
        ({"name": "trimmed_mean", "trim": 0.3}, 3, "needs at least 4 clients a round"),
        ("median", 2, "protects from nobody"),
    ],
)
def test_a_rule_that_would_be_the_mean_is_refused(aggregator: Any, num: int, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        strategy_of(num, aggregator=aggregator)
    strategy_of(num + 1, aggregator=aggregator)

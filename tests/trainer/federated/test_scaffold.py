"""SCAFFOLD's server side (Karimireddy et al. 2020, algorithm 1), by hand and against the drift that it is made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.federated.rounds import floats, strategy_of, weights_of, write_updates
from trainer.federated.strategy import State, Strategy


def test_by_hand(tmp_path: Path) -> None:
    """Two of four clients return dy = 2 and 6, dc = 1 and -5, whatever their examples; server rate 1/2.

    x = 10 + 1/2 * (2 + 6) / 2 = 12; c = 3 + 2/4 * (1 - 5) / 2 = 2.
    """
    strategy = strategy_of(4, strategy="scaffold", server_optimizer={"name": "sgd", "lr": 0.5})
    updates = write_updates(tmp_path, [{"w": [2]}, {"w": [6]}], variates=[{"w": [1]}, {"w": [-5]}], num_examples=[1, 9])
    state = State(weights_of(w=[10]), {"variate": weights_of(w=[3])})
    after = strategy.step(state, strategy.aggregate(state, updates))
    np.testing.assert_array_equal(after.weights["w"], floats([12]), strict=True)
    np.testing.assert_array_equal(after.memory["variate"]["w"], floats([2]), strict=True)
    assert state.memory["variate"]["w"] == 3


def test_no_variate_is_zero(tmp_path: Path) -> None:
    strategy = strategy_of(2, strategy="scaffold")
    updates = write_updates(tmp_path, [{"w": [2]}, {"w": [6]}], variates=[{"w": [1]}, {"w": [-5]}])
    state = strategy.init(weights_of(w=[0]))
    assert strategy.step(state, strategy.aggregate(state, updates)).memory["variate"]["w"] == -2


def test_a_variate_that_overflows_is_said(tmp_path: Path) -> None:
    strategy = strategy_of(1, strategy="scaffold")
    updates = write_updates(tmp_path, [{"w": [0]}], variates=[{"w": [3e38]}])
    state = strategy.init(weights_of(w=[0]))
    state = strategy.step(state, strategy.aggregate(state, updates))
    with pytest.raises(ValueError, match="control variate of tensor 'w' became infinite"):
        strategy.step(state, strategy.aggregate(state, updates))


def end_of(folder: Path, strategy: Strategy, curvatures: list[float], lr: float = 0.1) -> float:
    """Forty rounds of ten local steps on losses h_i/2 * (w - b_i)^2, b = -1 and 1; clients as in option II."""
    state = strategy.init(weights_of(w=[0]))
    scaffold = strategy.federated.strategy.name == "scaffold"
    own = [0.0, 0.0]
    for _ in range(40):
        start, server = float(state.weights["w"][0]), 0.0
        if "variate" in state.memory:
            server = float(state.memory["variate"]["w"][0])
        deltas, changes = [], []
        for client, (curvature, best) in enumerate(zip(curvatures, [-1.0, 1.0], strict=True)):
            local = start
            for _ in range(10):
                local -= lr * (curvature * (local - best) - (own[client] - server if scaffold else 0))
            new = own[client] - server + (start - local) / (10 * lr)
            deltas.append({"w": [local - start]})
            changes.append({"w": [new - own[client]]})
            own[client] = new
        updates = write_updates(folder, deltas, variates=changes if scaffold else None)
        state = strategy.step(state, strategy.aggregate(state, updates))
    return float(state.weights["w"][0])


def test_it_ends_where_fedavg_drifts_off(tmp_path: Path) -> None:
    """Curvatures 1 and 9: the best weight is (9 - 1) / 10 = 0.8, and FedAvg's fixed point lies 0.58 away from it.

    That of ten local steps is the mean weighted by 1 - (1 - lr * h)^10.
    """
    pulls = np.array([1 - 0.9**10, 1 - 0.1**10])
    drifted = float(pulls @ [-1, 1] / pulls.sum())
    assert abs(end_of(tmp_path, strategy_of(2), [1, 9]) - drifted) < 1e-6
    assert abs(end_of(tmp_path, strategy_of(2, strategy="scaffold"), [1, 9]) - 0.8) < 1e-6
    assert abs(drifted - 0.8) > 0.5

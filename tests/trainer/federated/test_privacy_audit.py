"""What an observer of the weights could tell, beside what the accountant promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.trainer.federated.rounds import strategy_of, write_updates
from trainer.federated.privacy import epsilon_after
from trainer.federated.strategy import State
from trainer.sections.clients import Clients
from trainer.sections.privacy import CentralPrivacy

Array = npt.NDArray[np.float64]
GRID = np.linspace(-30, 30, 12_001)


def normal(mean: float, std: float) -> Array:
    return np.exp(-(((GRID - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def exact_delta(one: Array, other: Array, epsilon: float) -> float:
    """The least delta of two densities at epsilon, in the worse direction."""
    sides = (np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), GRID) for p, q in ((one, other), (other, one)))
    return float(max(sides))


def redrawn(clients: Clients, noise: float, others: float, own: float) -> Array:
    """The density of a round's noisy sum, in units of the clip norm: each other client gives `others`, the one asked about `own`.

    Each is in by itself, and an empty draw is drawn again.
    """
    q, num_others = clients.share_drawn, clients.num - 1
    density = np.zeros_like(GRID)
    for k in range(num_others + 1):
        chance = math.comb(num_others, k) * q**k * (1 - q) ** (num_others - k)
        density += chance * q * normal(k * others + own, noise)
        if k:
            density += chance * (1 - q) * normal(k * others, noise)
    return density / (1 - (1 - q) ** clients.num)


@pytest.mark.parametrize("others", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "clients", [Clients(num=3, per_round=1), Clients(num=8, per_round=3), Clients(num=12, per_round=6)]
)
def test_drawing_again_costs_no_more_than_is_paid(clients: Clients, noise: float, others: float) -> None:
    """delta of the redrawn round <= delta of the Poisson-sampled one + the chance that the client is alone."""
    took_part, did_not = redrawn(clients, noise, others, 1.0), redrawn(clients, noise, others, 0.0)
    assert np.trapezoid(took_part, GRID) == pytest.approx(1, abs=1e-9)
    q = clients.share_drawn
    without, sampled = normal(0, noise), (1 - q) * normal(0, noise) + q * normal(1, noise)
    for epsilon in (0.1, 0.5, 1.0, 2.0, 4.0):
        promised = exact_delta(sampled, without, epsilon) + clients.chance_alone
        assert exact_delta(took_part, did_not, epsilon) <= promised + 1e-9


def test_drawing_again_does_cost() -> None:
    """Without paying for it, the accountant of the Poisson-sampled round would promise too much."""
    clients = Clients(num=3, per_round=1)
    sampled = 2 / 3 * normal(0, 1) + 1 / 3 * normal(1, 1)
    took_part, did_not = redrawn(clients, 1, -1.0, 1.0), redrawn(clients, 1, -1.0, 0.0)
    assert exact_delta(took_part, did_not, 1.0) > exact_delta(sampled, normal(0, 1), 1.0)


@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_the_promise_holds(delta: float) -> None:
    clients, privacy = Clients(num=20, per_round=10), CentralPrivacy(delta=delta)
    epsilon = epsilon_after(privacy, clients, 1)
    assert exact_delta(redrawn(clients, 1, -1.0, 1.0), redrawn(clients, 1, -1.0, 0.0), epsilon) <= delta


@pytest.mark.parametrize("length", [1.0, 1e4])
@pytest.mark.parametrize("num", [1, 12])
@pytest.mark.parametrize("clip", [{"name": "fixed", "norm": 0.5}, {"name": "adaptive", "initial_norm": 0.5}])
def test_noise_beside_the_longest_pull(tmp_path: Path, clip: dict[str, Any], num: int, length: float) -> None:
    """Through the files and the aggregator: one client, however long its update, moves the result by 1/z of the noise.

    A small z makes the pull plain to see; coordinates enough make the noise exact to 1 %.
    """
    z, size = 0.01, 100_000
    direction = np.random.default_rng(5).choice([-1.0, 1.0], size) / math.sqrt(size)
    strategy = strategy_of(num, privacy={"noise_multiplier": z, "clip": clip})
    updates = write_updates(tmp_path, [{"w": length * direction}] + [{"w": np.zeros(size)}] * (num - 1))
    delta = strategy.aggregate(State({"w": np.zeros(size, dtype=np.float32)}), updates).delta["w"]
    pull = float(delta @ direction)
    noise = float(np.std(delta - pull * direction))
    assert pull == pytest.approx(0.5 / num, rel=0.1)
    # An adaptive clip pays for its count with more noise on the sum.
    expected = z / math.sqrt(1 - (z * 10 / num) ** 2) if clip["name"] == "adaptive" else z
    assert noise / (0.5 / num) == pytest.approx(expected, rel=0.02)


def test_same_updates_other_noise(tmp_path: Path) -> None:
    strategy = strategy_of(2, privacy={})
    updates = write_updates(tmp_path, [{"w": [1.0, 2.0]}, {"w": [0.0, 1.0]}])
    state = State({"w": np.zeros(2, dtype=np.float32)})
    first, second = (strategy.aggregate(state, updates).delta["w"] for _ in range(2))
    assert not np.any(first == second)

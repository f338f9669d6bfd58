"""The robust rules by hand, and what the theorems promise of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.trainer.federated.rounds import FLOAT32, aggregate_of, floats, strategy_of, write_updates
from trainer.federated.aggregate import RoundUpdates
from trainer.federated.robust import mean_around_median, num_trimmed, squared_distances
from trainer.weights import BLOCK

KRUM = {"name": "krum", "attackers": 1}
BULYAN = {"name": "bulyan", "attackers": 1}


def rule_of(folder: Path, aggregator: object, deltas: Any, **said: Any) -> npt.NDArray[np.float64]:
    rows = list(np.asarray(deltas, dtype=np.float32))
    return aggregate_of(folder, strategy_of(len(rows), aggregator=aggregator), rows, **said).delta["w"]


def test_median_by_hand(tmp_path: Path) -> None:
    np.testing.assert_array_equal(rule_of(tmp_path, "median", [[1, 9], [5, -7], [2, 8]]), [2, 8])
    np.testing.assert_array_equal(rule_of(tmp_path, "median", [[1, 9], [5, -7], [2, 8], [3, 1e9]]), [2.5, 8.5])


def test_trimmed_mean_by_hand(tmp_path: Path) -> None:
    """0.25 of 5 is one value at either end."""
    deltas = [[1], [100], [3], [-50], [5]]
    assert rule_of(tmp_path, {"name": "trimmed_mean", "trim": 0.25}, deltas) == 3
    assert rule_of(tmp_path, {"name": "trimmed_mean", "trim": 0.45}, deltas) == 3


@pytest.mark.parametrize(
    ("trim", "num", "cut"),
    [(0.2, 5, 1), (0.29, 100, 29), (0.3, 10, 3), (0.2, 4, 0), (0.4999999999, 2, 0), (0.49, 3, 1)],
)
def test_whole_clients_are_trimmed(trim: float, num: int, cut: int) -> None:
    assert num_trimmed(trim, num) == cut


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean", KRUM, {**KRUM, "select": 3}, {**BULYAN}])
def test_examples_carry_no_weight(tmp_path: Path, aggregator: object) -> None:
    """A liar would say that it has a billion."""
    deltas = np.random.default_rng(0).normal(size=(7, 5))
    plain = rule_of(tmp_path, aggregator, deltas)
    np.testing.assert_array_equal(rule_of(tmp_path, aggregator, deltas, num_examples=[10**9, 1, 1, 1, 1, 1, 1]), plain)


def test_norm_bound_by_hand(tmp_path: Path) -> None:
    """Norms 5 and 1 with the bound 2, examples 1 and 3: (0.4 * (3, 4) + 3 * (1, 0)) / 4. The norm is over all tensors."""
    strategy = strategy_of(aggregator={"name": "norm_bound", "max_norm": 2})
    updates = write_updates(tmp_path, [{"a": [3], "b": [4]}, {"a": [1], "b": [0]}], num_examples=[1, 3])
    total = strategy.aggregate(strategy.init({"a": floats([0]), "b": floats([0])}), updates)
    np.testing.assert_allclose([total.delta["a"][0], total.delta["b"][0]], [1.05, 0.4], rtol=1e-15)
    assert (total.facts.norms, total.facts.num_clipped, total.facts.weights) == ([5, 1], 1, [0.25, 0.75])


def test_krum_by_hand(tmp_path: Path) -> None:
    """On a line, two neighbours each: 0: 1 + 9, 1: 1 + 4, 3: 1 + 4, 4: 1 + 9, 100: far. Of 1 and 3 the lower client's wins."""
    strategy = strategy_of(5, aggregator=KRUM)
    total = aggregate_of(tmp_path, strategy, [[4], [100], [3], [0], [1]])
    assert total.delta["w"] == 3
    assert total.facts.weights == [0, 0, 1, 0, 0]
    assert total.facts.left_out == [0, 1, 3, 4]
    assert total.facts.norms == [4, 100, 3, 0, 1]


def test_multi_krum_by_hand(tmp_path: Path) -> None:
    """The two, and then the lowest client of the next two: (3 + 1 + 4) / 3."""
    deltas = [[4], [100], [3], [0], [1]]
    assert rule_of(tmp_path, {**KRUM, "select": 2}, deltas) == 2
    assert rule_of(tmp_path, {**KRUM, "select": 3}, deltas) == 8 / 3


def test_bulyan_by_hand(tmp_path: Path) -> None:
    """Seven on a line, one attacker: Krum leaves out two, and the middle three of the other five are averaged.

    In turn, with 4, 3, 2, 1, 1 neighbours: 3 (4 + 1 + 1 + 4 = 10); of 1, 2, 4, 5, 6, 90 then 2 (1 + 4 + 9 = 14, as 4 and 5,
    of later clients); of 1, 4, 5, 6, 90: 5 (1 + 1); of 1, 4, 6, 90: 4 (4); of 1, 6, 90: 1 (25, as 6). So 1, 2, 3, 4, 5.
    """
    strategy = strategy_of(7, aggregator=BULYAN)
    total = aggregate_of(tmp_path, strategy, [[1], [2], [3], [4], [5], [6], [90]])
    assert total.facts.left_out == [5, 6]
    assert total.facts.weights is None
    assert total.delta["w"] == 3


def test_mean_around_median_by_hand() -> None:
    """The median of 0, 1, 5, 6, 9 is 5; three closest: 5, 6, and of 1 and 9 the lower."""
    values = np.array([[9.0, 0], [0, 0], [5, 2], [1, 2], [6, 100]])
    np.testing.assert_array_equal(mean_around_median(values.copy(), 3), [4, 4 / 3])
    np.testing.assert_array_equal(mean_around_median(values.copy(), 5), values.mean(axis=0))


@settings(deadline=None)
@given(arrays(np.float64, (9, 4), elements=st.integers(-5, 5)), st.integers(1, 9))
def test_mean_around_median_is_the_closest(values: npt.NDArray[np.float64], num: int) -> None:
    found = mean_around_median(values.copy(), num)
    for column, mean in zip(values.T, found, strict=True):
        closest = sorted(column, key=lambda value: (abs(value - np.median(column)), value))[:num]
        assert mean == pytest.approx(np.mean(closest))


def test_distances_are_those_of_whole_updates(tmp_path: Path) -> None:
    """Over all tensors and blocks; and of close updates with large norms, whose squares differ in the last digits alone."""
    rng = np.random.default_rng(0)
    for shift, rtol in ((0, 1e-12), (1e3, 1e-8)):
        deltas = (shift + rng.normal(size=(5, 2 * BLOCK + 10))).astype(np.float32)
        parts = [{"a": delta[: BLOCK + 3], "b": delta[BLOCK + 3 :].reshape(1, -1)} for delta in deltas]
        updates = write_updates(tmp_path, parts)
        shapes = {"a": (BLOCK + 3,), "b": (1, BLOCK + 7)}
        wide = deltas.astype(np.float64)
        exact = np.sum((wide[:, None] - wide[None, :]) ** 2, axis=-1)
        np.testing.assert_allclose(squared_distances(RoundUpdates(updates, FLOAT32, shapes)), exact, rtol=rtol)


@pytest.mark.parametrize("select", [1, 5])
def test_a_huge_lie_hides_no_other(tmp_path: Path, select: int) -> None:
    """One liar says 10^15, so that rounding would blur distances that depend on it; the other one turns back ten times."""
    honest = np.random.default_rng(0).normal(1, 0.1, size=(5, 20))
    strategy = strategy_of(7, aggregator={"name": "krum", "attackers": 2, "select": select})
    for lies in ([np.full(20, 1e15), np.full(20, -10)], [np.full(20, -10), np.full(20, 1e15)]):
        total = aggregate_of(tmp_path, strategy, [*lies, *honest])
        assert {0, 1} <= set(total.facts.left_out or [])


@pytest.mark.parametrize("aggregator", ["median", {"name": "trimmed_mean", "trim": 0.3}])
def test_blocks_change_no_bit(tmp_path: Path, aggregator: object) -> None:
    deltas = np.random.default_rng(0).normal(size=(6, 2 * BLOCK + 5)).astype(np.float32)
    ranks = np.sort(deltas.astype(np.float64), axis=0)
    middle = ranks[2:4] if aggregator == "median" else ranks[1:5]
    assert rule_of(tmp_path, aggregator, deltas).tobytes() == middle.mean(axis=0).tobytes()


@pytest.mark.parametrize(("aggregator", "num", "least"), [(KRUM, 4, 5), ({**KRUM, "select": 6}, 6, 7), (BULYAN, 6, 7)])
def test_too_few_updates(tmp_path: Path, aggregator: object, num: int, least: int) -> None:
    """The spec refuses too few clients; updates may be missing still."""
    with pytest.raises(
        ValueError, match=f"needs at least {least} updates, and the round has {num}: raise clients.quorum"
    ):
        aggregate_of(tmp_path, strategy_of(9, aggregator=aggregator), [[1.0]] * num)


@pytest.mark.parametrize("aggregator", ["median", KRUM, BULYAN])
def test_memory_holds_a_stretch_of_each_update(tmp_path: Path, aggregator: object) -> None:
    """8 MB of float64 for a million weights; of 8 or 16 updates besides, a block of 64 KB each and as much to work with."""
    deltas = np.random.default_rng(0).normal(size=(16, 1_000_000)).astype(np.float32)
    updates = write_updates(tmp_path, [{"w": delta} for delta in deltas])
    peaks = []
    for num in (8, 16):
        strategy = strategy_of(num, aggregator=aggregator)
        state = strategy.init({"w": np.zeros(1_000_000, np.float32)})
        tracemalloc.start()
        strategy.aggregate(state, updates[:num])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 8 * 3 * 8 * BLOCK
    assert peaks[1] < 12_000_000


HONEST = arrays(np.float32, (7, 3), elements=st.floats(-10, 10, width=32))
LIES = arrays(np.float32, (2, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32))


@settings(deadline=None)
@given(HONEST, LIES)
def test_no_lie_leaves_the_honest_range(
    tmp_path_factory: pytest.TempPathFactory, honest: npt.NDArray[np.float32], lies: npt.NDArray[np.float32]
) -> None:
    """Whatever two of nine say, median and trimmed mean lie between the honest values of each coordinate."""
    folder = tmp_path_factory.mktemp("lies")
    slack = 1e-12 * np.abs(honest).max(axis=0)
    for aggregator in ("median", {"name": "trimmed_mean", "trim": 0.25}):
        found = rule_of(folder, aggregator, np.vstack([lies, honest]))
        assert (honest.min(axis=0) - slack <= found).all()
        assert (found <= honest.max(axis=0) + slack).all()


@settings(deadline=None)
@given(arrays(np.float32, (10, 3), elements=st.floats(-10, 10, width=32)), LIES)
def test_bulyan_stays_close_to_the_honest(
    tmp_path_factory: pytest.TempPathFactory, honest: npt.NDArray[np.float32], lies: npt.NDArray[np.float32]
) -> None:
    """Whatever two of twelve say: at most the width of the honest values beyond them, in each coordinate."""
    found = rule_of(tmp_path_factory.mktemp("lies"), {**BULYAN, "attackers": 2}, np.vstack([lies, honest]))
    low, high = honest.min(axis=0).astype(np.float64), honest.max(axis=0).astype(np.float64)
    slack = 1e-12 * np.abs(honest).max(axis=0) + (high - low)
    assert (low - slack <= found).all()
    assert (found <= high + slack).all()

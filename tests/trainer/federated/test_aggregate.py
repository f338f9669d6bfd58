from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.trainer.federated.rounds import FLOAT32, aggregate_of, floats, strategy_of, write_updates
from trainer.federated.aggregate import FILES_AT_A_TIME, Aggregate, ClientUpdate, RoundUpdates, weighted_mean
from trainer.federated.weighting import by_examples
from trainer.sections.federated import Encoding
from trainer.weights import BLOCK

RNG = np.random.default_rng(0)


def mean_of(updates: list[ClientUpdate], **shapes: tuple[int, ...]) -> Aggregate:
    return weighted_mean(RoundUpdates(updates, FLOAT32, shapes), by_examples)


def random_updates(folder: Path, num: int, size: int) -> list[ClientUpdate]:
    rng = np.random.default_rng(0)
    deltas = [{"a": rng.normal(size=(2, size // 2)), "b": np.array(index)} for index in range(num)]
    return write_updates(folder, deltas, num_examples=range(1, num + 1))


def test_exact_weighted_mean(tmp_path: Path) -> None:
    # (1 * (1, 10) + 1 * (2, 20) + 2 * (4, 40)) / 4
    total = aggregate_of(tmp_path, strategy_of(), [[1, 10], [2, 20], [4, 40]], num_examples=[1, 1, 2])
    np.testing.assert_array_equal(total.delta["w"], np.array([2.75, 27.5]), strict=True)
    assert total.facts.weights == [0.25, 0.25, 0.5]
    assert total.facts.norms == pytest.approx([101**0.5, 404**0.5, 1616**0.5], rel=1e-15)
    assert set(total.facts.model_dump(exclude_none=True)) == {"weights", "norms"}
    assert total.variate is None


def test_shapes_and_scalars(tmp_path: Path) -> None:
    total = mean_of(random_updates(tmp_path, 3, 10), a=(2, 5), b=())
    assert total.delta["a"].shape == (2, 5)
    assert total.delta["b"] == (0 * 1 + 1 * 2 + 2 * 3) / 6


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 10**6)), min_size=1, max_size=8))
def test_as_exact_as_float64(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, int]]) -> None:
    folder = tmp_path_factory.mktemp("updates")
    examples = [num for _, num in values]
    updates = write_updates(folder, [{"w": [value]} for value, _ in values], num_examples=examples)
    exact = sum(Fraction(value) * num for value, num in values) / sum(examples)
    size = sum(abs(value) * num for value, num in values) / sum(examples)
    assert abs(mean_of(updates, w=(1,)).delta["w"][0] - float(exact)) <= 1e-14 * size


def test_equal_updates_are_their_own_mean(tmp_path: Path) -> None:
    """To the last bit of float32, whatever the weights."""
    delta = floats(RNG.normal(size=1000))
    total = aggregate_of(tmp_path, strategy_of(7), [delta] * 7, num_examples=[1, 3, 7, 11, 13, 17, 19])
    np.testing.assert_array_equal(total.delta["w"].astype(np.float32), delta, strict=True)


def test_same_updates_same_bits_in_any_order(tmp_path: Path) -> None:
    """Clients are summed by their index, however they came in."""
    updates = random_updates(tmp_path, 5, 100_000)  # several blocks, and a last one that is not full
    first, again = mean_of(updates, a=(2, 50_000), b=()), mean_of(updates[::-1], a=(2, 50_000), b=())
    assert first.delta["a"].tobytes() == again.delta["a"].tobytes()
    assert first.facts == again.facts


def test_blocks_change_no_bit(tmp_path: Path) -> None:
    deltas = [floats(RNG.normal(size=2 * BLOCK + 3)) for _ in range(3)]
    total = aggregate_of(tmp_path, strategy_of(), deltas, num_examples=[3, 5, 7])
    wide = [delta.astype(np.float64) for delta in deltas]
    assert total.delta["w"].tobytes() == ((wide[0] * 3 + wide[1] * 5 + wide[2] * 7) / 15).tobytes()


def test_groups_change_no_bit(tmp_path: Path) -> None:
    """More updates than files are open at once."""
    deltas = [floats(RNG.normal(size=5)) for _ in range(2 * FILES_AT_A_TIME + 1)]
    total = aggregate_of(tmp_path, strategy_of(len(deltas)), deltas)
    in_turn = np.zeros(5)
    for delta in deltas:
        in_turn += delta
    assert total.delta["w"].tobytes() == (in_turn / len(deltas)).tobytes()
    assert total.facts.norms == pytest.approx([np.linalg.norm(delta.astype(np.float64)) for delta in deltas])


@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [({"name": "bfloat16"}, 2**-8), ({"name": "int8"}, 1 / 127), ({"name": "top_k", "fraction": 1.0}, 0)],
)
def test_encoded_updates_are_decoded(tmp_path: Path, encoding: dict[str, object], tolerance: float) -> None:
    deltas = RNG.uniform(-1, 1, size=(4, 3, 5)).astype(np.float32)
    strategy = strategy_of(4, encoding=encoding)
    chosen: Encoding = TypeAdapter(Encoding).validate_python(encoding)
    updates = write_updates(tmp_path, [{"w": delta} for delta in deltas], encoding=chosen)
    total = strategy.aggregate(strategy.init({"w": np.zeros((3, 5), np.float32)}), updates)
    np.testing.assert_allclose(total.delta["w"], deltas.astype(np.float64).mean(axis=0), rtol=0, atol=tolerance)
    assert total.facts.norms == pytest.approx([np.linalg.norm(delta) for delta in deltas], rel=0.02)


def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    """16 MB of float64 for 8 MB of weights, for 2 as for 16 updates. numpy tells tracemalloc of its arrays; maps count for nothing."""
    updates = random_updates(tmp_path, 16, 2_000_000)
    peaks = []
    for num in (2, 16):
        tracemalloc.start()
        mean_of(updates[:num], a=(2, 1_000_000), b=())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
    assert peaks[1] < 17_000_000


@pytest.mark.parametrize("examples", [[], [0, 0]])
def test_nothing_to_aggregate(tmp_path: Path, examples: list[int]) -> None:
    updates = write_updates(tmp_path, [{"w": [1.0]}] * len(examples), num_examples=examples)
    with pytest.raises(ValueError, match="nothing to aggregate"):
        strategy_of().aggregate(strategy_of().init({"w": floats([0])}), updates)

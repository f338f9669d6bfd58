from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.federated.aggregate import ClientUpdate, aggregate_updates
from trainer.weights import write_weights


def write_updates(folder: Path, num: int, size: int) -> list[ClientUpdate]:
    rng = np.random.default_rng(0)
    updates = []
    for index in range(num):
        path = folder / f"{index}.safetensors"
        write_weights(path, {"a": rng.normal(size=(2, size // 2)).astype(np.float32), "b": np.array(index, np.float32)})
        updates.append(ClientUpdate(path, num_examples=index + 1))
    return updates


def test_exact_weighted_mean(tmp_path: Path) -> None:
    for name, value in (("x", [1.0, 10.0]), ("y", [2.0, 20.0]), ("z", [4.0, 40.0])):
        write_weights(tmp_path / name, {"w": np.array(value, np.float32)})
    total = aggregate_updates([ClientUpdate(tmp_path / name, num) for name, num in (("x", 1), ("y", 1), ("z", 2))])
    np.testing.assert_array_equal(total.delta["w"], np.array([2.75, 27.5]), strict=True)
    assert (total.num_examples, total.num_clients) == (4, 3)


def test_shapes_and_scalars(tmp_path: Path) -> None:
    total = aggregate_updates(write_updates(tmp_path, 3, 10))
    assert total.delta["a"].shape == (2, 5)
    assert total.delta["b"] == (0 * 1 + 1 * 2 + 2 * 3) / 6


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 10**6)), min_size=1, max_size=8))
def test_as_exact_as_float64(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, int]]) -> None:
    folder = tmp_path_factory.mktemp("updates")
    for index, (value, _) in enumerate(values):
        write_weights(folder / str(index), {"w": np.array([value], np.float32)})
    total = aggregate_updates([ClientUpdate(folder / str(index), num) for index, (_, num) in enumerate(values)])
    exact = sum(Fraction(value) * num for value, num in values) / sum(num for _, num in values)
    size = sum(abs(value) * num for value, num in values) / sum(num for _, num in values)
    assert abs(total.delta["w"][0] - float(exact)) <= 1e-14 * size


def test_same_updates_same_bits(tmp_path: Path) -> None:
    updates = write_updates(tmp_path, 5, 100_000)  # several blocks, and a last one that is not full
    first, again = aggregate_updates(updates), aggregate_updates(updates)
    assert first.delta["a"].tobytes() == again.delta["a"].tobytes()


def test_blocks_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = write_updates(tmp_path, 5, 10_000)
    whole = aggregate_updates(updates)
    monkeypatch.setattr("trainer.federated.aggregate.BLOCK", 7)
    assert aggregate_updates(updates).delta["a"].tobytes() == whole.delta["a"].tobytes()


def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    """16 MB of float64 for 8 MB of weights, for 2 as for 16 updates. numpy tells tracemalloc of its arrays; maps count for nothing."""
    updates = write_updates(tmp_path, 16, 2_000_000)
    peaks = []
    for num in (2, 16):
        tracemalloc.start()
        aggregate_updates(updates[:num])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
    assert peaks[1] < 17_000_000


@pytest.mark.parametrize("examples", [[], [0, 0]])
def test_nothing_to_aggregate(tmp_path: Path, examples: list[int]) -> None:
    updates = [ClientUpdate(u.path, num) for u, num in zip(write_updates(tmp_path, 2, 4), examples, strict=False)]
    with pytest.raises(ValueError, match="nothing to aggregate"):
        aggregate_updates(updates)

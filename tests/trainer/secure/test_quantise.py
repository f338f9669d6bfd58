"""Whole numbers of updates: sums are exact, errors half a step a client, and what is cut is counted."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.secure.clients import terms
from trainer.secure.prg import Ring
from trainer.secure.quantise import LARGEST, NotFinite, Quantiser


def total_of(encoded: list[dict[str, Ring]]) -> dict[str, Ring]:
    return {name: np.add.reduce([each[name] for each in encoded], dtype=np.uint32) for name in encoded[0]}


@pytest.mark.parametrize("num", [3, 8, 1000])
@pytest.mark.parametrize("clip", [1e-3, 4.0, 1e6])
def test_a_sum_is_off_by_half_a_step_of_each_client(num: int, clip: float) -> None:
    rng = np.random.default_rng(num)
    quantiser = Quantiser(terms(num), clip)
    deltas = rng.uniform(-clip, clip, (num, 200)).astype(np.float32)
    factors = rng.uniform(0, 1, num)
    encoded = [quantiser.encode({"w": delta}, factor) for delta, factor in zip(deltas, factors, strict=True)]
    assert [cut for _, cut in encoded] == [0] * num
    decoded = quantiser.decode(total_of([each for each, _ in encoded]))["w"]
    exact = (factors[:, None] * deltas.astype(np.float64)).sum(axis=0)
    assert decoded.dtype == np.float64
    assert np.abs(decoded - exact).max() <= num * 0.5 / quantiser.step * (1 + 1e-9)


@pytest.mark.parametrize("num", [3, 7, 10_000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_all_clients_at_the_clip_do_not_overflow(num: int, sign: float) -> None:
    quantiser = Quantiser(terms(num), 0.1)
    encoded, cut = quantiser.encode({"w": np.array([sign * 5, sign * np.finfo(np.float32).max])}, 1.0)
    assert cut == 2
    each = int(encoded["w"].view(np.int32)[0])
    assert abs(each) == LARGEST // num
    total = {"w": (encoded["w"].astype(np.uint64) * num).astype(np.uint32)}
    np.testing.assert_allclose(quantiser.decode(total)["w"], sign * 0.1 * num, rtol=1e-12)


def test_what_is_cut_is_counted_after_weighing() -> None:
    quantiser = Quantiser(terms(3), 2.0)
    delta = {"a": np.array([[2.0, -2.0], [2.1, -8.0]], np.float32), "b": np.array(4.0, np.float32)}
    assert [quantiser.encode(delta, factor)[1] for factor in (1.0, 0.5, 0.25, 0.0)] == [3, 1, 0, 0]
    encoded, _ = quantiser.encode(delta, 1.0)
    decoded = quantiser.decode(encoded)
    assert decoded["a"].shape == (2, 2)
    assert decoded["b"].shape == ()
    np.testing.assert_allclose(decoded["a"], [[2, -2], [2, -2]], rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_stands_for_nan(value: float) -> None:
    delta = {"a": np.zeros(3, np.float32), "layer.weight": np.array([0, value], np.float32)}
    with pytest.raises(
        NotFinite, match=r"Tensor 'layer\.weight' of the update holds NaN or infinite values: lower the"
    ):
        Quantiser(terms(3), 1.0).encode(delta, 0.0)

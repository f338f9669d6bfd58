"""How updates travel: exact layouts, what comes back, and what stays with the client."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.trainer.federated.updates import ENCODINGS, federated, header_of
from trainer.federated.check import check_update
from trainer.federated.codecs import CODECS
from trainer.federated.encoding import UpdateFile, encode_update, expected_update, update_shapes
from trainer.sections.federated import TopKEncoding
from trainer.weights import Header, Weights, read_header, write_weights

DELTA: Weights = {
    "0.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "0.bias": np.array([0.5, -0.25, 0], np.float32),
    "norm1.weight": np.array(2.0, np.float32),
}
HALF = TopKEncoding(name="top_k", fraction=0.5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sent(path: Path, encoding: str, delta: Weights, seed: int = 0) -> UpdateFile:
    """Encode, write, and open as the server does."""
    tensors, _ = encode_update(delta, ENCODINGS[encoding], rng=rng(seed))
    write_weights(path, tensors)
    return UpdateFile(path, ENCODINGS[encoding], {name: array.shape for name, array in delta.items()})


def decoded(file: UpdateFile) -> Weights:
    return {name: file.block(name, 0, math.prod(file.shape(name))).reshape(file.shape(name)) for name in file.names}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_sent_is_what_is_expected(tmp_path: Path, encoding: str) -> None:
    file = sent(tmp_path / "u", encoding, DELTA)
    expected = expected_update(header_of(DELTA), federated(encoding=ENCODINGS[encoding].model_dump()))
    assert read_header(tmp_path / "u") == expected
    assert file.names == ("0.bias", "0.weight", "norm1.weight")
    assert (file.shape("0.weight"), file.shape("norm1.weight")) == ((3, 4), ())


def test_layouts() -> None:
    weights: Header = {"w": ("F32", (5, 20)), "b": ("F32", ())}

    def expected(**options: object) -> Header:
        return expected_update(weights, federated(**options))

    assert expected() == weights
    assert expected(encoding={"name": "bfloat16"}) == {"w": ("BF16", (5, 20)), "b": ("BF16", ())}
    assert expected(encoding={"name": "int8"}) == {
        "w": ("I8", (5, 20)),
        "scale.w": ("F32", (1,)),
        "b": ("I8", ()),
        "scale.b": ("F32", (1,)),
    }
    assert expected(encoding={"name": "top_k", "fraction": 0.041}) == {
        "index.w": ("I32", (5,)),  # 4.1 of 100, rounded up
        "value.w": ("F32", (5,)),
        "index.b": ("I32", (1,)),
        "value.b": ("F32", (1,)),
    }
    variates = {"variate.w": ("F32", (5, 20)), "variate.b": ("F32", ())}
    assert expected(strategy={"name": "scaffold"}) == weights | variates


def test_norm_layers_of_fedbn_do_not_travel() -> None:
    weights: Header = dict.fromkeys(("0.weight", "0.norm.bias", "norm2.running_var", "abnormal.bias"), ("F32", (2,)))
    fedbn = federated(strategy={"name": "fedbn"}, encoding={"name": "int8"})
    assert update_shapes(weights, fedbn) == {"0.weight": (2,), "abnormal.bias": (2,)}
    assert set(expected_update(weights, fedbn)) == {
        "0.weight",
        "scale.0.weight",
        "abnormal.bias",
        "scale.abnormal.bias",
    }
    assert update_shapes(weights, federated()).keys() == weights.keys()


def test_float32_is_the_delta_itself(tmp_path: Path) -> None:
    tensors, residual = encode_update(DELTA, ENCODINGS["float32"], rng=rng())
    assert residual is None
    assert all(tensors[name] is DELTA[name] for name in DELTA)
    for name, array in decoded(sent(tmp_path / "u", "float32", DELTA)).items():
        np.testing.assert_array_equal(array, DELTA[name], strict=True)


def test_bfloat16_by_hand(tmp_path: Path) -> None:
    """8 bits of precision: between 1 and 2 the step is 1/128, and halves go to the even neighbour."""
    values = np.array([1, 1 + 1 / 256, 1 + 3 / 256, 1 + 1 / 512, -0.0, 3e38], np.float32)
    arrived = decoded(sent(tmp_path / "u", "bfloat16", {"w": values}))["w"]
    assert arrived.dtype == np.float32
    assert arrived[:5].tolist() == [1, 1, 1 + 4 / 256, 1, 0]
    assert arrived[5] == pytest.approx(3e38, rel=2**-8)
    assert (tmp_path / "u").stat().st_size < sent_size(tmp_path, values)


def sent_size(folder: Path, values: np.ndarray) -> int:
    sent(folder / "plain", "float32", {"w": values})
    return (folder / "plain").stat().st_size


def test_int8_by_hand() -> None:
    """The largest value is level 127; whole levels arrive exactly, whatever the draws."""
    values = np.array([127, -127, 64, 0, 1], np.float32) / 8
    for seed in range(20):
        tensors, residual = encode_update({"w": values}, ENCODINGS["int8"], rng=rng(seed))
        assert residual is None
        assert tensors["w"].tolist() == [127, -127, 64, 0, 1]
        assert tensors["scale.w"].tolist() == [0.125]


def test_int8_rounds_at_random_and_stays_true(tmp_path: Path) -> None:
    """A quarter of a level goes up in a quarter of the draws: the mean of what arrives is what was sent."""
    num = 40_000
    values = np.full(num, 3.25, np.float32)
    values[0] = 127  # one level is 1
    arrived = decoded(sent(tmp_path / "u", "int8", {"w": values}))["w"][1:]
    assert set(np.unique(arrived)) == {3.0, 4.0}
    assert arrived.mean() == pytest.approx(3.25, abs=4 * math.sqrt(0.25 * 0.75 / num))
    below = decoded(sent(tmp_path / "v", "int8", {"w": -values}))["w"][1:]
    assert below.mean() == pytest.approx(-3.25, abs=4 * math.sqrt(0.25 * 0.75 / num))


def test_int8_of_zeros(tmp_path: Path) -> None:
    file = sent(tmp_path / "u", "int8", {"w": np.zeros(3, np.float32)})
    assert decoded(file)["w"].tolist() == [0, 0, 0]
    assert file.norm() == 0


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=FINITE))
def test_int8_is_off_by_less_than_a_level(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    """Denormal and huge values included."""
    file = sent(tmp_path_factory.mktemp("u") / "u", "int8", {"w": values})
    largest = float(np.abs(values).max())
    level = max(largest / 127 * (1 + 1e-6), float(np.finfo(np.float32).smallest_subnormal))
    assert np.abs(decoded(file)["w"] - values.astype(np.float64)).max() <= level


def test_top_k_by_hand() -> None:
    """The largest magnitudes, in the order of their places; of equals the first."""
    values = np.array([[0.5, -3, 1], [2, 1, -1]], np.float32)
    tensors, residual = encode_update({"w": values}, HALF, rng=rng())
    assert tensors["index.w"].tolist() == [1, 2, 3]
    assert tensors["value.w"].tolist() == [-3, 1, 2]
    assert residual is not None
    np.testing.assert_array_equal(residual["w"], np.array([[0.5, 0, 0], [0, 1, -1]], np.float32), strict=True)


def test_error_feedback_adds_what_was_left_out() -> None:
    """Two rounds: what did not travel in the first weighs in the second, and nothing is lost in between."""
    first = np.array([1, 10, 3, 0], np.float32)
    _, residual = encode_update({"w": first}, HALF, rng=rng())
    assert residual is not None
    assert residual["w"].tolist() == [1, 0, 0, 0]
    tensors, residual = encode_update({"w": np.array([4, 2, 0, 3], np.float32)}, HALF, rng=rng(), residual=residual)
    assert tensors["index.w"].tolist() == [0, 3]
    assert tensors["value.w"].tolist() == [5, 3]
    assert residual is not None
    assert residual["w"].tolist() == [0, 2, 0, 0]


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 2**16))
def test_top_k_loses_nothing(size: int, fraction: float, seed: int) -> None:
    """What arrives and what is kept are exactly the delta and the residual before."""
    delta = {"w": rng(seed).normal(size=size).astype(np.float32)}
    before = {"w": rng(seed + 1).normal(size=size).astype(np.float32)}
    encoding = TopKEncoding(name="top_k", fraction=fraction)
    tensors, after = encode_update(delta, encoding, rng=rng(), residual=before)
    assert after is not None
    arrived = np.zeros(size, np.float32)
    arrived[tensors["index.w"]] = tensors["value.w"]
    np.testing.assert_array_equal(arrived + after["w"], delta["w"] + before["w"], strict=True)
    assert np.abs(tensors["value.w"]).min() >= np.abs(after["w"]).max()
    assert (np.diff(tensors["index.w"]) > 0).all()


def test_training_that_diverged_does_not_spoil_the_residual() -> None:
    """Its update is refused at the door; the next one, of better weights, must not be."""
    diverged = np.array([np.nan, np.inf, -np.inf, np.nan, 1, 2], np.float32)
    tensors, residual = encode_update({"w": diverged}, HALF, rng=rng(), residual={"w": np.ones(6, np.float32)})
    assert not np.isfinite(tensors["value.w"]).any()
    assert residual is not None
    assert residual["w"].tolist() == [0, 0, 0, 0, 2, 3]


def test_everything_travels_at_fraction_1(tmp_path: Path) -> None:
    whole = TopKEncoding(name="top_k", fraction=1)
    tensors, residual = encode_update(DELTA, whole, rng=rng())
    write_weights(tmp_path / "u", tensors)
    file = UpdateFile(tmp_path / "u", whole, {name: array.shape for name, array in DELTA.items()})
    for name, array in decoded(file).items():
        np.testing.assert_array_equal(array, DELTA[name], strict=True)
    assert residual is not None
    assert not any(kept.any() for kept in residual.values())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_empty_tensor(tmp_path: Path, encoding: str) -> None:
    delta = DELTA | {"empty": np.zeros((0, 4), np.float32)}
    file = sent(tmp_path / "u", encoding, delta)
    assert decoded(file)["empty"].shape == (0, 4)
    check_update(tmp_path / "u", header_of(delta), federated(encoding=ENCODINGS[encoding].model_dump()))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_blocks_are_parts_of_the_whole(tmp_path: Path, encoding: str) -> None:
    """Any cut, at the ends and across blocks, gives the same elements."""
    size = 20_001
    file = sent(tmp_path / "u", encoding, {"w": rng(5).normal(size=size).astype(np.float32)})
    whole = file.block("w", 0, size)
    for start, stop in [(0, 1), (size - 1, size), (8191, 8193), (7, 19_000), (40, 40)]:
        np.testing.assert_array_equal(file.block("w", start, stop), whole[start:stop], strict=True)
    assert file.norm() == pytest.approx(np.linalg.norm(whole.astype(np.float64)), rel=1e-12)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_draws_same_bits(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever order the tensors come, and however large a block is."""
    delta = {name: rng(3).normal(size=100).astype(np.float32) for name in "abc"}
    sent(tmp_path / "u", encoding, delta)
    sent(tmp_path / "v", encoding, dict(reversed(delta.items())))
    monkeypatch.setattr("trainer.federated.codecs.BLOCK", 7)
    sent(tmp_path / "w", encoding, delta)
    assert len({(tmp_path / name).read_bytes() for name in "uvw"}) == 1


def test_the_delta_is_left_as_it_was() -> None:
    before = {name: array.copy() for name, array in DELTA.items()}
    residual = {name: np.ones_like(array) for name, array in DELTA.items()}
    for encoding in ENCODINGS.values():
        encode_update(DELTA, encoding, rng=rng(), residual=residual)
    for name, array in DELTA.items():
        np.testing.assert_array_equal(array, before[name], strict=True)
        assert (residual[name] == 1).all()


def test_variates_are_mapped(tmp_path: Path) -> None:
    variate = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_weights(tmp_path / "u", {"w": np.zeros((2, 3), np.float32), "variate.w": variate})
    file = UpdateFile(tmp_path / "u", ENCODINGS["float32"], {"w": (2, 3)})
    np.testing.assert_array_equal(file.variate("w"), variate, strict=True)
    assert file.names == ("w",)
    assert file.norm() == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reading_costs_no_memory_of_the_process(tmp_path: Path, encoding: str) -> None:
    delta = {"w": np.linspace(-1, 1, 1_000_000, dtype=np.float32)}
    sent(tmp_path / "u", encoding, delta)
    tracemalloc.start()
    try:
        UpdateFile(tmp_path / "u", ENCODINGS[encoding], {"w": (1_000_000,)}).norm()
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()


def test_every_encoding_of_the_spec_has_its_codec() -> None:
    assert set(CODECS) == set(ENCODINGS) == kinds_of_the_spec()


def kinds_of_the_spec() -> set[str]:
    schema = federated().model_json_schema()
    return set(schema["properties"]["encoding"]["discriminator"]["mapping"])

"""The door: every kind of bad update, each with its sentence."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.federated.updates import ENCODINGS, federated, header_of
from trainer.federated.check import UpdateRefused, check_update
from trainer.federated.encoding import encode_update
from trainer.weights import Header, Weights, write_weights

GOOD = {"w": np.array([[3, 0], [0, 4]], np.float32), "b": np.zeros(2, np.float32)}
HEADER = header_of(GOOD)
PLAIN = federated()


def refusal(path: Path, tensors: Weights, header: Header = HEADER, **options: Any) -> str:
    """The door's sentence on an update with these tensors."""
    write_weights(path / "u", tensors)
    with pytest.raises(UpdateRefused) as refused:
        check_update(path / "u", header, federated(**options))
    return str(refused.value)


def encoded(encoding: str, delta: Weights = GOOD, changes: Mapping[str, Any] | None = None) -> Weights:
    """`delta` as it travels, with some tensors changed; None leaves one out."""
    tensors, _ = encode_update(delta, ENCODINGS[encoding], rng=np.random.default_rng(0))
    return {name: array for name, array in {**tensors, **(changes or {})}.items() if array is not None}


def test_a_good_update(tmp_path: Path) -> None:
    write_weights(tmp_path / "u", GOOD)
    facts = check_update(tmp_path / "u", HEADER, PLAIN)
    assert facts.norm == 5.0
    assert facts.size_bytes == (tmp_path / "u").stat().st_size


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_good_update_in_each_encoding(tmp_path: Path, encoding: str) -> None:
    write_weights(tmp_path / "u", encoded(encoding))
    facts = check_update(tmp_path / "u", HEADER, federated(encoding=ENCODINGS[encoding].model_dump()))
    assert facts.norm == pytest.approx(5.0, abs=4 / 127)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"w": None}, "The update lacks tensor 'w'."),
        ({"w": None, "b": None, "x": np.zeros(1)}, "The update lacks 2 tensors, such as 'b', 'w'."),
        ({"x": np.zeros(1, np.float32)}, "The update holds tensor 'x', which this job's updates do not have."),
        ({"w": np.zeros((4,), np.float32)}, "Tensor 'w' of the update has the shape [4], not [2, 2]."),
        ({"w": np.zeros((2, 2), np.float64)}, "Tensor 'w' of the update has the type F64, not F32."),
        ({"w": np.zeros((2, 2), np.uint16)}, "Tensor 'w' of the update has the type BF16, not F32."),
    ],
)
def test_wrong_tensors(tmp_path: Path, changes: dict[str, np.ndarray | None], sentence: str) -> None:
    assert refusal(tmp_path, encoded("float32", changes=changes)) == sentence


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_training_that_diverged(tmp_path: Path, encoding: str, value: float) -> None:
    """Each encoding lets it show, and the door says what to do."""
    sent = encoded(encoding, GOOD | {"b": np.array([0.5, value], np.float32)})
    sentence = refusal(tmp_path, sent, encoding=ENCODINGS[encoding].model_dump())
    assert sentence == "Tensor 'b' of the update holds NaN or infinite values: lower the learning rate."


def test_both_infinities(tmp_path: Path) -> None:
    sent = encoded("float32", GOOD | {"b": np.array([-np.inf, np.inf], np.float32)})
    assert "'b' of the update holds NaN" in refusal(tmp_path, sent)


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "float32"])
def test_another_encoding_than_the_jobs(tmp_path: Path, encoding: str) -> None:
    assert refusal(tmp_path, GOOD, encoding=ENCODINGS[encoding].model_dump())
    assert refusal(tmp_path, encoded(encoding))


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [
        (-0.5, "Tensor 'scale.w' of the update is -0.5, and a scale is never negative."),
        (np.nan, "Tensor 'w' of the update holds NaN or infinite values: lower the learning rate."),
        (np.inf, "Tensor 'w' of the update holds NaN or infinite values: lower the learning rate."),
    ],
)
def test_bad_scales(tmp_path: Path, scale: float, sentence: str) -> None:
    sent = encoded("int8", changes={"scale.w": np.array([scale], np.float32)})
    assert refusal(tmp_path, sent, encoding={"name": "int8"}) == sentence


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ([1, 0], "does not rise from element to element, from 0 on."),
        ([1, 1], "does not rise from element to element, from 0 on."),
        ([-1, 1], "does not rise from element to element, from 0 on."),
        ([0, 4], "names element 4 of 4."),
        ([0, 2**31 - 1], "names element 2147483647 of 4."),
    ],
)
def test_bad_indices(tmp_path: Path, index: list[int], sentence: str) -> None:
    sent = encoded("top_k", changes={"index.w": np.array(index, np.int32)})
    whole = refusal(tmp_path, sent, encoding={"name": "top_k", "fraction": 0.5})
    assert whole == f"Tensor 'index.w' of the update {sentence}"


def test_an_index_that_falls_between_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.federated.encoding.BLOCK", 2)
    header: Header = {"w": ("F32", (8,))}
    sent: Weights = {"index.w": np.array([0, 1, 1, 2], np.int32), "value.w": np.ones(4, np.float32)}
    sentence = refusal(tmp_path, sent, header, encoding={"name": "top_k", "fraction": 0.5})
    assert "'index.w' of the update does not rise" in sentence


def test_variates(tmp_path: Path) -> None:
    """SCAFFOLD's are asked for, checked, and no part of the norm."""
    variates = {f"variate.{name}": np.ones_like(array) for name, array in GOOD.items()}
    write_weights(tmp_path / "u", GOOD | variates)
    scaffold: dict[str, Any] = {"strategy": {"name": "scaffold"}}
    assert check_update(tmp_path / "u", HEADER, federated(**scaffold)).norm == 5.0
    assert refusal(tmp_path, GOOD, **scaffold) == "The update lacks 2 tensors, such as 'variate.b', 'variate.w'."
    bad = GOOD | variates | {"variate.b": np.array([0, np.nan], np.float32)}
    assert "Tensor 'variate.b' of the update holds NaN" in refusal(tmp_path, bad, **scaffold)
    assert "2 tensors, such as 'variate.b', 'variate.w', which" in refusal(tmp_path, GOOD | variates)


def test_norm_layers_stay_at_home(tmp_path: Path) -> None:
    header = HEADER | {"norm1.weight": ("F32", (2,))}
    fedbn: dict[str, Any] = {"strategy": {"name": "fedbn"}}
    write_weights(tmp_path / "u", GOOD)
    assert check_update(tmp_path / "u", header, federated(**fedbn)).norm == 5.0
    leaky = GOOD | {"norm1.weight": np.zeros(2, np.float32)}
    assert "holds tensor 'norm1.weight', which" in refusal(tmp_path, leaky, header, **fedbn)
    assert "lacks tensor 'norm1.weight'" in refusal(tmp_path, GOOD, header)


def forged(header: object, data: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04cposix\nsystem\n",  # a pickle
        struct.pack("<Q", 2**63) + b"{}",
        forged([]),
        forged({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}),  # announces bytes that are not there
        forged({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}, bytes(16)),
        forged({"w": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, bytes(24)),  # a hole
        forged(
            {
                "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},  # overlap
            },
            bytes(24),
        ),
    ],
)
def test_not_a_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "u").write_bytes(content)
    with pytest.raises(UpdateRefused, match="The update is not a safetensors file: "):
        check_update(tmp_path / "u", HEADER, PLAIN)


def test_cut_short(tmp_path: Path) -> None:
    write_weights(tmp_path / "u", GOOD)
    (tmp_path / "u").write_bytes((tmp_path / "u").read_bytes()[:-1])
    with pytest.raises(UpdateRefused, match="not a safetensors file"):
        check_update(tmp_path / "u", HEADER, PLAIN)


def test_tensors_at_odd_offsets(tmp_path: Path) -> None:
    """The format asks for no alignment, so a sender may put one byte before all others."""
    levels, scale = bytes([1, 2, 255]), struct.pack("<f", 0.5)
    header = {
        "w": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
        "scale.w": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
    }
    (tmp_path / "u").write_bytes(forged(header, levels + scale))
    facts = check_update(tmp_path / "u", {"w": ("F32", (3,))}, federated(encoding={"name": "int8"}))
    assert facts.norm == pytest.approx(0.5 * 6**0.5)


def test_large_values_do_not_overflow_the_norm(tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    write_weights(tmp_path / "u", {"w": np.full(4, largest, np.float32)})
    assert check_update(tmp_path / "u", {"w": ("F32", (4,))}, PLAIN).norm == pytest.approx(2 * largest)


def test_one_nan_in_many_blocks(tmp_path: Path) -> None:
    values = np.zeros(100_001, np.float32)
    values[-1] = np.nan
    assert "'w' of the update holds NaN" in refusal(tmp_path, {"w": values}, {"w": ("F32", (100_001,))})


def test_a_sentence_stays_short(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, GOOD | {f"{'x' * 5000}{i}": np.zeros(1, np.float32) for i in range(50)})
    assert sentence.startswith("The update holds 50 tensors, such as 'xxx")
    assert len(sentence) < 400


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_memory_stays_constant(tmp_path: Path, encoding: str) -> None:
    """4 MB of deltas, some blocks of 64 kB at a time."""
    delta = {"w": np.linspace(-1, 1, 1_000_000, dtype=np.float32)}
    write_weights(tmp_path / "u", encoded(encoding, delta))
    chosen = federated(encoding=ENCODINGS[encoding].model_dump())
    tracemalloc.start()
    try:
        check_update(tmp_path / "u", header_of(delta), chosen)
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()


def test_100_megabytes_take_no_second_of_the_processor(tmp_path: Path) -> None:
    write_weights(tmp_path / "u", {"w": np.ones((5000, 5000), np.float32)})
    started = time.process_time()  # of all threads; 0.03 s
    assert check_update(tmp_path / "u", {"w": ("F32", (5000, 5000))}, PLAIN).norm == 5000
    assert time.process_time() - started < 0.3

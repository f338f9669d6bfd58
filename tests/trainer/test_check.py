"""The door: every kind of bad update, each with its sentence."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.federated.check import UpdateRefused, check_update, expected_header
from trainer.weights import Header, write_weights

GOOD = {"w": np.array([[3, 0], [0, 4]], np.float32), "b": np.zeros(2, np.float32)}


@pytest.fixture
def expected(tmp_path: Path) -> Header:
    write_weights(tmp_path / "weights", GOOD)
    return expected_header(tmp_path / "weights")


def test_a_good_update(tmp_path: Path, expected: Header) -> None:
    write_weights(tmp_path / "u", GOOD)
    facts = check_update(tmp_path / "u", expected, max_norm=5.0)
    assert facts.norm == 5.0
    assert facts.size_bytes == (tmp_path / "u").stat().st_size


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"w": None}, "The update lacks tensor 'w'"),
        ({"w": None, "b": None, "x": np.zeros(1)}, "The update lacks 2 tensors, such as 'b', 'w'"),
        ({"x": np.zeros(1, np.float32)}, "The update holds tensor 'x', which the model does not have"),
        ({"w": np.zeros((4,), np.float32)}, r"Tensor 'w' of the update has the shape \[4\], not \[2, 2\]"),
        ({"w": np.zeros((2, 2), np.float64)}, "Tensor 'w' of the update has the type F64, not F32"),
        ({"b": np.array([0, np.nan], np.float32)}, "Tensor 'b' of the update holds NaN or infinite values"),
        ({"b": np.array([np.inf, 0], np.float32)}, "Tensor 'b' of the update holds NaN or infinite values"),
        ({"b": np.array([-np.inf, np.inf], np.float32)}, "Tensor 'b' of the update holds NaN or infinite values"),
        ({"b": np.array([12, 0], np.float32)}, "The update's norm is 13, and at most 5 is allowed"),
    ],
)
def test_wrong_tensors(tmp_path: Path, expected: Header, changes: dict[str, np.ndarray | None], sentence: str) -> None:
    tensors = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    write_weights(tmp_path / "u", tensors)
    with pytest.raises(UpdateRefused, match=sentence):
        check_update(tmp_path / "u", expected, max_norm=5.0)


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
def test_not_a_safetensors_file(tmp_path: Path, expected: Header, content: bytes) -> None:
    (tmp_path / "u").write_bytes(content)
    with pytest.raises(UpdateRefused, match="The update is not a safetensors file: "):
        check_update(tmp_path / "u", expected)


def test_cut_short(tmp_path: Path, expected: Header) -> None:
    write_weights(tmp_path / "u", GOOD)
    (tmp_path / "u").write_bytes((tmp_path / "u").read_bytes()[:-1])
    with pytest.raises(UpdateRefused, match="not a safetensors file"):
        check_update(tmp_path / "u", expected)


def test_large_values_do_not_overflow_the_norm(tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    write_weights(tmp_path / "u", {"w": np.full(4, largest, np.float32)})
    assert check_update(tmp_path / "u", {"w": ("F32", (4,))}).norm == pytest.approx(2 * largest)


def test_one_nan_in_many_blocks(tmp_path: Path) -> None:
    values = np.zeros(100_001, np.float32)
    values[-1] = np.nan
    write_weights(tmp_path / "u", {"w": values})
    with pytest.raises(UpdateRefused, match="'w' of the update holds NaN"):
        check_update(tmp_path / "u", {"w": ("F32", (100_001,))})


def test_a_sentence_stays_short(tmp_path: Path, expected: Header) -> None:
    write_weights(tmp_path / "u", GOOD | {f"{'x' * 5000}{i}": np.zeros(1, np.float32) for i in range(50)})
    with pytest.raises(UpdateRefused) as refusal:
        check_update(tmp_path / "u", expected)
    assert str(refusal.value).startswith("The update holds 50 tensors, such as 'xxx")
    assert len(str(refusal.value)) < 400


def test_100_megabytes_take_no_second_of_the_processor(tmp_path: Path) -> None:
    write_weights(tmp_path / "u", {"w": np.ones((5000, 5000), np.float32)})
    started = time.process_time()  # of all threads; 0.03 s
    assert check_update(tmp_path / "u", {"w": ("F32", (5000, 5000))}).norm == 5000
    assert time.process_time() - started < 0.3

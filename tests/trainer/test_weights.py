from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from trainer.weights import (
    NotSafetensors,
    Weights,
    bfloat16_of,
    from_bfloat16,
    map_weights,
    pack_weights,
    read_header,
    read_metadata,
    write_weights,
)

WEIGHTS: Weights = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(2.5, dtype=np.float64),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "count": np.array([1, -2], dtype=np.int64),
}


def test_mapped_equals_written(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, WEIGHTS)
    mapped = map_weights(path)
    assert mapped.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(mapped[name], array, strict=True)
        np.testing.assert_array_equal(mapped[name], load_file(path)[name], strict=True)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_mapping_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(pack_weights(WEIGHTS))
    with pytest.raises(ValueError, match="read-only"):
        map_weights(tmp_path / "w")["a"][...] = 0


def test_header_and_metadata(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", WEIGHTS, {"spec": "{}"})
    assert read_header(tmp_path / "w")["layer.weight"] == ("F32", (2, 3))
    assert read_metadata(tmp_path / "w") == {"spec": "{}"}


def test_same_weights_same_bytes() -> None:
    assert pack_weights(WEIGHTS) == pack_weights({name: array.copy() for name, array in WEIGHTS.items()})


def test_arrays_that_are_no_rows_of_memory(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", {"t": WEIGHTS["layer.weight"].T})
    np.testing.assert_array_equal(map_weights(tmp_path / "w")["t"], WEIGHTS["layer.weight"].T)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 100, pack_weights(WEIGHTS)[:-1], pack_weights(WEIGHTS) + b"x"]
)
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(NotSafetensors, match="w is not a safetensors file"):
        map_weights(tmp_path / "w")


@pytest.mark.parametrize("read", [read_header, read_metadata, map_weights])
def test_a_missing_file_is_no_broken_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "w")


def test_bfloat16_travels_as_such(tmp_path: Path) -> None:
    """numpy knows no bfloat16: uint16 holds the bits, and files name the type. torch reads the same numbers."""
    values = np.array([[1, -2.5], [3e38, 0]], np.float32)
    write_weights(tmp_path / "w", {"t": bfloat16_of(values)})
    assert read_header(tmp_path / "w")["t"] == ("BF16", (2, 2))
    mapped = map_weights(tmp_path / "w")["t"]
    assert mapped.dtype == np.uint16
    read = safetensors.torch.load_file(tmp_path / "w")["t"]
    assert torch.equal(read, torch.from_numpy(values).bfloat16())
    np.testing.assert_array_equal(from_bfloat16(mapped), read.float().numpy(), strict=True)


def test_bfloat16_rounds_as_torch_does() -> None:
    """Every kind of number: denormal, infinite, and NaN with any payload."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = np.concatenate([bits, np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF], np.uint32)]).view(
        np.float32
    )
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(bfloat16_of(values)), expected, strict=True)


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", {"a": np.array([1, 2], ">f4")})
    np.testing.assert_array_equal(map_weights(tmp_path / "w")["a"], np.array([1, 2], np.float32), strict=True)

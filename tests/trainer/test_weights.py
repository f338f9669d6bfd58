from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from trainer.weights import (
    NotSafetensors,
    Weights,
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


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotSafetensors, match="w is not"):
        read_metadata(tmp_path / "w")

"""Weights as arrays by name, in safetensors files. Torch-free: the web process and the conductor read them too.

Reading maps the file, so that a gigabyte of weights costs no memory of the process. The safetensors library has checked
the header before (sizes, overlaps, holes), so a hostile file maps nothing that it does not hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, TensorSpec, safe_open, serialize, serialize_file

Weights = dict[str, npt.NDArray[Any]]
"""Tensors by name. The order says nothing: a file has its own. numpy knows no bfloat16: an array of uint16 holds the bits
of BF16 numbers, in memory and towards a file (`bfloat16_of`, `from_bfloat16`)."""
Header = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> (safetensors dtype such as F32, shape)."""
BLOCK = 1 << 13
"""Elements to widen and sum at a time. They stay in the processor's cache, and below the 10,000 from which OpenBLAS adds
threads: those wait for one another on a busy machine (100 MB took 2 s instead of 0.02)."""

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U32": "<u4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class NotSafetensors(ValueError):
    """The file is no well-formed safetensors file. The text is a sentence."""


def read_header(path: Path) -> Header:
    """Return names, dtypes and shapes in the order of their bytes, without reading any tensor.

    Raises NotSafetensors, and FileNotFoundError where there is no file, as all that read here.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the file's metadata, such as the spec of a final model. Raises NotSafetensors."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def map_weights(path: Path, *, writable: bool = False) -> Weights:
    """Return views of the file's tensors, without copying them: read-only, or such that writing changes the file.

    Raises NotSafetensors.

    The format allows no holes, so the offsets follow from the order and the sizes; reading them through the library
    would copy each tensor.
    """
    header = read_header(path)
    if unknown := sorted({dtype for dtype, _ in header.values()} - _DTYPES.keys()):
        raise NotSafetensors(f"{path.name} holds {unknown[0]} tensors, which have no array type.")
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * _SIZES[dtype] for name, (dtype, shape) in header.items()}
    offset = path.stat().st_size - sum(sizes.values())
    data = np.asarray(
        np.memmap(path, dtype=np.uint8, mode="r+" if writable else "r")
    )  # a plain array: slices of a memmap cost five times more
    weights: Weights = {}
    for name, (dtype, shape) in header.items():
        weights[name] = data[offset : offset + sizes[name]].view(_DTYPES[dtype]).reshape(shape)
        offset += sizes[name]
    return weights


def pack_weights(weights: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> bytes:
    """Return the weights as the bytes of a safetensors file: same weights, same bytes."""
    rows = _as_rows(weights)
    return bytes(serialize(_specs(rows), metadata))


def write_weights(path: Path, weights: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. It appears whole under its name, or not at all."""
    rows = _as_rows(weights)
    part = path.with_name(path.name + ".part")
    serialize_file(_specs(rows), part, metadata)
    os.replace(part, path)


def bfloat16_of(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even. NaN stays NaN; what is too large becomes infinite."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16).astype(np.uint16)
    # The carry would turn some NaNs into zeros or infinities.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return bfloat16 numbers as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:  # who deleted it knows why: a round that closed, for one
        raise
    except (SafetensorError, OSError) as error:
        raise NotSafetensors(f"{path.name} is not a safetensors file: {error}") from error


def _as_rows(weights: Mapping[str, npt.NDArray[Any]]) -> Weights:
    """Return the arrays as a file holds them: little-endian, in rows."""
    return {name: np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C") for name, array in weights.items()}


def _specs(rows: Weights) -> dict[str, TensorSpec]:
    """Return what the library writes. They point into the arrays: hold those until it has."""
    return {
        name: TensorSpec(
            dtype="bfloat16" if array.dtype == np.uint16 else array.dtype.name,
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in rows.items()
    }

"""Weights as arrays by name, in safetensors files. Torch-free: the web process and the conductor read them too.

Reading maps the file, so that a gigabyte of weights costs no memory of the process. The safetensors library has checked
the header before (sizes, overlaps, holes), so a hostile file maps nothing that it does not hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

Weights = dict[str, npt.NDArray[Any]]
"""Tensors by name. The order says nothing: a file has its own."""
Header = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> (safetensors dtype such as F32, shape)."""
BLOCK = 1 << 13
"""Elements to widen and sum at a time. They stay in the processor's cache, and below the 10,000 from which OpenBLAS adds
threads: those wait for one another on a busy machine (100 MB took 2 s instead of 0.02)."""

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class NotSafetensors(ValueError):
    """The file is no well-formed safetensors file. The text is a sentence."""


def read_header(path: Path) -> Header:
    """Return names, dtypes and shapes in the order of their bytes, without reading any tensor. Raises NotSafetensors."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise NotSafetensors(f"{path.name} is not a safetensors file: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the file's metadata, such as the spec of a final model. Raises NotSafetensors."""
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise NotSafetensors(f"{path.name} is not a safetensors file: {error}") from error


def map_weights(path: Path) -> Weights:
    """Return read-only views of the file's tensors, without copying them. Raises NotSafetensors.

    The format allows no holes, so the offsets follow from the order and the sizes; reading them through the library
    would copy each tensor.
    """
    header = read_header(path)
    if unknown := sorted({dtype for dtype, _ in header.values()} - _DTYPES.keys()):
        raise NotSafetensors(f"{path.name} holds {unknown[0]} tensors, which have no array type.")
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * _SIZES[dtype] for name, (dtype, shape) in header.items()}
    offset = path.stat().st_size - sum(sizes.values())
    data = np.memmap(path, dtype=np.uint8, mode="r")
    weights: Weights = {}
    for name, (dtype, shape) in header.items():
        weights[name] = data[offset : offset + sizes[name]].view(_DTYPES[dtype]).reshape(shape)
        offset += sizes[name]
    return weights


def pack_weights(weights: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> bytes:
    """Return the weights as the bytes of a safetensors file: same weights, same bytes."""
    packed: bytes = save({name: np.asarray(array, order="C") for name, array in weights.items()}, metadata)
    return packed


def write_weights(path: Path, weights: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. It appears whole under its name, or not at all."""
    part = path.with_name(path.name + ".part")
    save_file({name: np.asarray(array, order="C") for name, array in weights.items()}, part, metadata)
    os.replace(part, path)

"""The door: is this file an update that may be summed? Torch-free, one pass over the mapped file.

A bad update is refused here, with a sentence for the job's page, and never caught inside a sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.weights import BLOCK, Header, NotSafetensors, map_weights, read_header


class UpdateRefused(ValueError):
    """The update may not take part. The text is a sentence that names the tensor."""


@dataclass(frozen=True)
class UpdateFacts:
    """What the check found."""

    norm: float
    """Euclidean norm over all tensors."""
    size_bytes: int


def expected_header(weights_path: Path) -> Header:
    """Return what an update to these weights must hold: the same names, shapes and dtypes."""
    return read_header(weights_path)


def check_update(
    path: Path, expected: Mapping[str, tuple[str, tuple[int, ...]]], *, max_norm: float | None = None
) -> UpdateFacts:
    """Return the facts of a good update; `expected` is the header of the round's weights. Raises UpdateRefused."""
    try:
        header = read_header(path)
    except NotSafetensors as error:
        raise UpdateRefused(f"The update is not a safetensors file: {error.__cause__}.") from error
    _check_header(header, expected)
    squares = 0.0
    for name, tensor in map_weights(path).items():
        own = _sum_of_squares(tensor.reshape(-1))
        if not math.isfinite(own):  # float32 squared never overflows float64: only NaN and Inf lead here
            raise UpdateRefused(f"Tensor '{name}' of the update holds NaN or infinite values: lower the learning rate.")
        squares += own
    norm = math.sqrt(squares)
    if max_norm is not None and norm > max_norm:
        raise UpdateRefused(f"The update's norm is {norm:.6g}, and at most {max_norm:.6g} is allowed.")
    return UpdateFacts(norm=norm, size_bytes=path.stat().st_size)


def _check_header(header: Header, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    if missing := sorted(expected.keys() - header.keys()):
        raise UpdateRefused(f"The update lacks {_listed(missing)}.")
    if extra := sorted(header.keys() - expected.keys()):
        raise UpdateRefused(f"The update holds {_listed(extra)}, which the model does not have.")
    for name, (dtype, shape) in expected.items():
        own_dtype, own_shape = header[name]
        if own_shape != tuple(shape):
            raise UpdateRefused(f"Tensor '{name}' of the update has the shape {list(own_shape)}, not {list(shape)}.")
        if own_dtype != dtype:
            raise UpdateRefused(f"Tensor '{name}' of the update has the type {own_dtype}, not {dtype}.")


def _listed(names: list[str]) -> str:
    """Return the first names, cut: they come from the sender and may be many and long."""
    shown = ", ".join(f"'{name[:80]}'" for name in names[:3])
    return f"tensor {shown}" if len(names) == 1 else f"{len(names)} tensors, such as {shown}"


def _sum_of_squares(values: npt.NDArray[Any]) -> float:
    """Return the sum of squares of a one-dimensional array, in float64; NaN or infinite if an element is."""
    total = 0.0
    wide = np.empty(min(BLOCK, len(values)), dtype=np.float64)
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        scratch = wide[: len(part)]
        scratch[:] = part
        total += float(scratch @ scratch)
    return total

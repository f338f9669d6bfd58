"""The door: is this file an update that may be summed? Torch-free, one pass over the mapped file, in constant memory.

A bad update is refused here, with a sentence for the job's page, and never caught inside a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.federated.codecs import INDEX, SCALE
from trainer.federated.encoding import UpdateFile, blocks_of, expected_update, sum_of_squares, update_shapes
from trainer.federated.names import VARIATE
from trainer.sections.federated import Federated, Int8Encoding, TopKEncoding
from trainer.weights import Header, NotSafetensors, map_weights, read_header


class UpdateRefused(ValueError):
    """The update may not take part. The text is a sentence that names the tensor."""


@dataclass(frozen=True)
class UpdateFacts:
    """What the check found."""

    norm: float
    """Euclidean norm over all deltas, decoded."""
    size_bytes: int


def check_update(path: Path, weights: Header, federated: Federated) -> UpdateFacts:
    """Return the facts of a good update to weights with the header `weights`. Raises UpdateRefused."""
    try:
        header = read_header(path)
    except NotSafetensors as error:
        raise UpdateRefused(f"The update is not a safetensors file: {error.__cause__}.") from error
    check_header(header, expected_update(weights, federated))
    file = UpdateFile(path, federated.encoding, update_shapes(weights, federated))
    tensors = map_weights(path)
    squares = 0.0
    for name in file.names:
        if isinstance(federated.encoding, Int8Encoding):
            _check_scale(name, float(tensors[SCALE + name][0]))
        if isinstance(federated.encoding, TopKEncoding):
            _check_index(name, tensors[INDEX + name], math.prod(file.shape(name)))
        own = file.sum_of_squares(name)
        _check_finite(name, own)
        if federated.strategy.name == "scaffold":
            _check_finite(VARIATE + name, sum_of_squares(blocks_of(file.variate(name))))
        squares += own
    return UpdateFacts(norm=math.sqrt(squares), size_bytes=path.stat().st_size)


def check_header(header: Header, expected: Header) -> None:
    """Raise UpdateRefused unless both have the same tensors, shapes and types."""
    if missing := sorted(expected.keys() - header.keys()):
        raise UpdateRefused(f"The update lacks {_listed(missing)}.")
    if extra := sorted(header.keys() - expected.keys()):
        raise UpdateRefused(f"The update holds {_listed(extra)}, which this job's updates do not have.")
    for name, (dtype, shape) in expected.items():
        own_dtype, own_shape = header[name]
        if own_shape != tuple(shape):
            raise UpdateRefused(f"Tensor '{name}' of the update has the shape {list(own_shape)}, not {list(shape)}.")
        if own_dtype != dtype:
            raise UpdateRefused(f"Tensor '{name}' of the update has the type {own_dtype}, not {dtype}.")


def _check_finite(name: str, squares: float) -> None:
    if not math.isfinite(squares):
        raise UpdateRefused(f"Tensor '{name}' of the update holds NaN or infinite values: lower the learning rate.")


def _check_scale(name: str, scale: float) -> None:
    _check_finite(name, scale)
    if scale < 0:
        raise UpdateRefused(f"Tensor '{SCALE}{name}' of the update is {scale:.6g}, and a scale is never negative.")


def _check_index(name: str, index: npt.NDArray[np.int32], size: int) -> None:
    """Refuse what would be written twice, out of order, or outside the tensor of `size` elements."""
    last = -1
    for part in blocks_of(index):
        if part[0] <= last or (part[1:] <= part[:-1]).any():
            raise UpdateRefused(
                f"Tensor '{INDEX}{name}' of the update does not rise from element to element, from 0 on."
            )
        last = int(part[-1])
    if last >= size:
        raise UpdateRefused(f"Tensor '{INDEX}{name}' of the update names element {last} of {size}.")


def _listed(names: list[str]) -> str:
    """Return the first names, cut: they come from the sender and may be many and long."""
    shown = ", ".join(f"'{name[:80]}'" for name in names[:3])
    return f"tensor {shown}" if len(names) == 1 else f"{len(names)} tensors, such as {shown}"

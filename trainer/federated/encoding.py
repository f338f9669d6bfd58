"""Updates as they travel: encoded by the client, read by blocks on the server. Torch-free.

What a file holds follows from the spec alone (`expected_update`), so the door can refuse anything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.federated.codecs import Floats, build_codec
from trainer.federated.names import VARIATE, is_norm
from trainer.sections.federated import Encoding, Federated
from trainer.weights import BLOCK, Header, Weights, map_weights


def update_shapes(weights: Header, federated: Federated) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the deltas in an update to these weights: all tensors, with FedBN those of no norm layer."""
    stay = federated.strategy.name == "fedbn"
    return {name: shape for name, (_, shape) in weights.items() if not (stay and is_norm(name))}


def expected_update(weights: Header, federated: Federated) -> Header:
    """Return what an encoded update to these weights must hold, to the byte.

    With SCAFFOLD that is `variate.<name>` besides, float32, for each tensor.
    """
    codec = build_codec(federated.encoding)
    expected: Header = {}
    for name, shape in update_shapes(weights, federated).items():
        expected |= codec.layout(name, shape)
        if federated.strategy.name == "scaffold":
            expected[VARIATE + name] = ("F32", shape)
    return expected


def encode_update(
    delta: Mapping[str, npt.NDArray[Any]],
    encoding: Encoding,
    *,
    rng: np.random.Generator,
    residual: Mapping[str, npt.NDArray[Any]] | None = None,
) -> tuple[Weights, Weights | None]:
    """Return the tensors of `delta` (float32) as they travel, and the residual that the client keeps for its next update.

    Only what loses on purpose has a residual (top_k; else None): what did not travel, float32. Give it as `residual` with
    the next delta, and it is added to that (error feedback, Stich et al. 2018, algorithm 1). Tensors are taken in the
    order of their names, so that the same `rng` gives the same bits.
    """
    codec = build_codec(encoding)
    encoded: Weights = {}
    kept: Weights = {}
    for name in sorted(delta):
        values = np.asarray(delta[name], np.float32)
        if codec.lossy and residual:
            with np.errstate(over="ignore", invalid="ignore"):  # of training that diverged: the door says so
                values = values + residual[name]
        tensors = codec.encode(name, values, rng)
        encoded |= tensors
        if codec.lossy:
            kept[name] = _lost(values, codec.decode(_flat(tensors), name, 0, values.size))
    return encoded, kept if codec.lossy else None


class UpdateFile:
    """An update on disk that has passed the door (`check_update`). Mapped: reading it costs no memory of the process."""

    def __init__(self, path: Path, encoding: Encoding, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are those of the deltas (`update_shapes`). Raises NotSafetensors."""
        self._mapped = map_weights(path)
        self._flat = _flat(self._mapped)
        self._codec = build_codec(encoding)
        self._shapes = shapes
        self.names = tuple(sorted(shapes))
        """The tensors, in the order in which they are summed."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def block(self, name: str, start: int, stop: int) -> Floats:
        """Return the elements [start, stop) of the delta of tensor `name`, one-dimensional; perhaps a read-only view."""
        return self._codec.decode(self._flat, name, start, stop)

    def variate(self, name: str) -> npt.NDArray[np.float32]:
        """Return the change of the client's control variate, mapped (SCAFFOLD)."""
        return self._mapped[VARIATE + name]

    def norm(self) -> float:
        """Return the Euclidean norm over all deltas, summed in float64."""
        return math.sqrt(sum(self.sum_of_squares(name) for name in self.names))

    def sum_of_squares(self, name: str) -> float:
        """Return that of one delta; NaN or infinite if an element is: float32 squared never overflows float64."""
        return sum_of_squares(self._blocks(name))

    def _blocks(self, name: str) -> Iterator[Floats]:
        size = math.prod(self._shapes[name])
        for start in range(0, size, BLOCK):
            yield self.block(name, start, min(start + BLOCK, size))


def blocks_of(tensor: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Cut a tensor into one-dimensional views of at most `BLOCK` elements."""
    flat = tensor.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))


def sum_of_squares(blocks: Iterator[npt.NDArray[Any]]) -> float:
    """Return the sum of squares of all elements, in float64. A block holds at most `BLOCK` elements."""
    total = 0.0
    wide = np.empty(BLOCK, np.float64)
    for block in blocks:
        scratch = wide[: len(block)]
        scratch[:] = block
        total += float(scratch @ scratch)
    return total


def _flat(tensors: Mapping[str, npt.NDArray[Any]]) -> Weights:
    return {name: tensor.reshape(-1) for name, tensor in tensors.items()}


def _lost(values: npt.NDArray[np.float32], arrived: Floats) -> npt.NDArray[np.float32]:
    """Return what did not travel: exactly zero where an element did."""
    with np.errstate(invalid="ignore"):
        lost = values.reshape(-1) - arrived
    # Training diverged: the update is refused, and what is kept must not spoil the updates after it.
    lost[~np.isfinite(lost)] = 0
    return lost.reshape(values.shape).astype(np.float32)

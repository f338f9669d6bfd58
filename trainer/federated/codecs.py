"""The number formats in which updates travel: one codec for each name in `trainer.sections.federated.Encoding`. Torch-free.

A codec knows one tensor of an update: which tensors carry it through a file, how to make those, and how to read a part of
it back without decoding the rest. `trainer.federated.encoding` makes whole updates of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.sections import federated as options
from trainer.weights import BLOCK, Header, Weights, bfloat16_of, from_bfloat16

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

SCALE = "scale."
"""int8: `scale.<name>` holds the one number that all levels of tensor `<name>` are multiplied by."""
INDEX = "index."
"""top_k: `index.<name>` says which elements of tensor `<name>`, in the order of its rows, travel."""
VALUE = "value."
"""top_k: `value.<name>` holds those elements."""
MAX_LEVEL = 127
"""int8: the levels go from -127 to 127, so that zero is one of them and both signs are alike."""


class Codec(Protocol):
    """One number format."""

    lossy: bool
    """Whether what is lost should be kept and added to the next update (error feedback)."""

    def layout(self, name: str, shape: tuple[int, ...]) -> Header:
        """Return the tensors that carry the float32 tensor `name`."""

    def encode(self, name: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> Weights:
        """Return those tensors. NaN and infinite values stay visible in them: the door refuses the update, not the client."""

    def decode(self, file: Mapping[str, npt.NDArray[Any]], name: str, start: int, stop: int) -> Floats:
        """Return the elements [start, stop) of tensor `name`, one-dimensional. `file` holds flat arrays."""


class Float32:
    """`<name>` F32, as it is."""

    lossy = False

    def layout(self, name: str, shape: tuple[int, ...]) -> Header:
        return {name: ("F32", shape)}

    def encode(self, name: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> Weights:
        return {name: values}

    def decode(self, file: Mapping[str, npt.NDArray[Any]], name: str, start: int, stop: int) -> Floats:
        return file[name][start:stop]


class Bfloat16:
    """`<name>` BF16: the nearest number with 8 bits of precision."""

    lossy = False

    def layout(self, name: str, shape: tuple[int, ...]) -> Header:
        return {name: ("BF16", shape)}

    def encode(self, name: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> Weights:
        flat = values.reshape(-1)
        bits = np.empty(len(flat), np.uint16)
        for start in range(0, len(flat), BLOCK):  # in the processor's cache: four times faster than all at once
            bits[start : start + BLOCK] = bfloat16_of(flat[start : start + BLOCK])
        return {name: bits.reshape(values.shape)}

    def decode(self, file: Mapping[str, npt.NDArray[Any]], name: str, start: int, stop: int) -> Floats:
        return from_bfloat16(file[name][start:stop])


class Int8:
    """`<name>` I8 and `scale.<name>` F32 [1]: delta = scale * level, with scale = max|delta| / 127 for each tensor.

    Stochastic rounding, as QSGD (Alistarh et al. 2017, section 3.1), by the maximum instead of the Euclidean norm: a value
    between two levels goes to the upper one with the probability of its distance from the lower one, so that the
    expectation of what arrives is what was sent.
    """

    lossy = False

    def layout(self, name: str, shape: tuple[int, ...]) -> Header:
        return {name: ("I8", shape), SCALE + name: ("F32", (1,))}

    def encode(self, name: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> Weights:
        flat = values.reshape(-1)
        levels = np.zeros(len(flat), np.int8)
        scale = _scale(flat)
        if np.isfinite(scale) and scale > 0:
            for start in range(0, len(flat), BLOCK):
                part = flat[start : start + BLOCK] / np.float64(scale)
                part += rng.random(len(part))
                np.floor(part, out=part)
                levels[start : start + BLOCK] = np.clip(part, -MAX_LEVEL, MAX_LEVEL, out=part)
        return {name: levels.reshape(values.shape), SCALE + name: np.array([scale], np.float32)}

    def decode(self, file: Mapping[str, npt.NDArray[Any]], name: str, start: int, stop: int) -> Floats:
        # In float64, which holds the product of 8 and 24 bits exactly: the mean stays true to the last bit.
        delta: Floats = np.multiply(file[name][start:stop], file[SCALE + name][0], dtype=np.float64)
        return delta


@dataclass(frozen=True)
class TopK:
    """`index.<name>` I32 [k], ascending, and `value.<name>` F32 [k]: the k elements of a tensor that are largest.

    Sparsified SGD with memory (Stich et al. 2018, algorithm 1), for each tensor by itself. Of equal ones the first travel.
    """

    fraction: float
    lossy = True

    def layout(self, name: str, shape: tuple[int, ...]) -> Header:
        k = self._num_kept(math.prod(shape))
        return {INDEX + name: ("I32", (k,)), VALUE + name: ("F32", (k,))}

    def encode(self, name: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> Weights:
        flat = values.reshape(-1)
        index = _largest(flat, self._num_kept(len(flat)))
        return {INDEX + name: index.astype(np.int32), VALUE + name: flat[index]}

    def decode(self, file: Mapping[str, npt.NDArray[Any]], name: str, start: int, stop: int) -> Floats:
        index = file[INDEX + name]
        # Not np.searchsorted: it copies an array that some sender's file has at an odd offset, once for each block.
        first, last = bisect_left(index, start), bisect_left(index, stop)
        values = np.zeros(stop - start, np.float32)
        values[index[first:last] - start] = file[VALUE + name][first:last]
        return values

    def _num_kept(self, size: int) -> int:
        """Elements of a tensor that travel: at least one, where there is one."""
        return min(size, max(1, math.ceil(self.fraction * size)))


CODECS: dict[str, Callable[[Any], Codec]] = {
    "float32": lambda _: Float32(),
    "bfloat16": lambda _: Bfloat16(),
    "int8": lambda _: Int8(),
    "top_k": lambda chosen: TopK(chosen.fraction),
}


def build_codec(encoding: options.Encoding) -> Codec:
    """Return the codec that a spec names."""
    return CODECS[encoding.name](encoding)


def _scale(flat: npt.NDArray[np.float32]) -> np.float32:
    """Return the step between two levels, rounded up: no value may lie above the highest level."""
    largest = np.float64(max(np.max(flat), -np.min(flat))) if len(flat) else np.float64(0)
    scale = np.float32(largest / MAX_LEVEL)
    return np.nextafter(scale, np.float32(np.inf)) if scale * np.float64(MAX_LEVEL) < largest else scale


def _largest(flat: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Return the indices, ascending, of the k elements of the largest magnitude; NaN counts as the largest."""
    if k == len(flat):
        return np.arange(k)
    sizes = np.abs(flat)
    sizes[np.isnan(sizes)] = np.inf
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    above = np.flatnonzero(sizes > least)
    equal = np.flatnonzero(sizes == least)[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))

"""Masks: long random vectors from short keys, added to tensors in the ring Z_2^32.

The generator is AES-256 in counter mode over zeros, with a key that is used for one vector alone: with AES in hardware a million
elements take under a millisecond. A vector runs over all tensors in the order of their names, so that whoever has the key has
the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Ring = npt.NDArray[np.uint32]
"""Elements of Z_2^32: sums wrap around."""

KEY_BYTES = 32
_BLOCK = 1 << 15
"""Elements expanded at a time: 128 KiB, which stay in the processor's cache."""
_KEYS_AT_A_TIME = 64
"""Generators that run side by side; each pass over the tensors serves so many masks."""
_ZEROS = bytes(4 * _BLOCK)


@dataclass(frozen=True)
class Mask:
    """PRG(key), to be added or taken away."""

    key: bytes
    sign: Literal[1, -1]


def add_masks(tensors: Mapping[str, Ring], masks: Sequence[Mask]) -> None:
    """Add the masks to the tensors, in place. They are contiguous, and all parties have the same names and shapes.

    Memory: 128 KiB, however many masks.
    """
    for first in range(0, len(masks), _KEYS_AT_A_TIME):
        _add(tensors, masks[first : first + _KEYS_AT_A_TIME])


def _add(tensors: Mapping[str, Ring], masks: Sequence[Mask]) -> None:
    # A fresh key for each vector: the counter may begin at 0.
    streams = [(Cipher(algorithms.AES(mask.key), modes.CTR(bytes(16))).encryptor(), mask.sign) for mask in masks]
    scratch = np.empty(_BLOCK, dtype="<u4")
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            random = scratch[: part.size]
            for stream, sign in streams:
                stream.update_into(_ZEROS[: 4 * part.size], random.data.cast("B"))
                if sign > 0:
                    part += random
                else:
                    part -= random

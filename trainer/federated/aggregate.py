"""The weighted mean of the clients' updates, streamed from their files. Pure, torch-free.

One accumulator of float64, twice the size of the weights, whatever the number of clients. Each element is summed over
the updates in the given order, so the same updates give the same bits. float64 needs no compensation: the sum of ten
thousand float32 values is exact to the last float32 bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.weights import BLOCK, Weights, map_weights


@dataclass(frozen=True)
class ClientUpdate:
    """One accepted update: a safetensors file of deltas, and its weight."""

    path: Path
    num_examples: int


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates come to."""

    delta: Weights
    """sum(n_i * delta_i) / sum(n_i), float64."""
    num_examples: int
    num_clients: int


def aggregate_updates(updates: Sequence[ClientUpdate]) -> Aggregate:
    """Return the mean of the updates, weighted by examples, summed in the order given.

    The updates have passed `check_update`. Raises ValueError where there are none, or all have no examples.
    """
    num_examples = sum(update.num_examples for update in updates)
    if num_examples <= 0:
        raise ValueError("There is nothing to aggregate: no update, or none with examples.")
    totals: Weights = {}
    wide = np.empty(BLOCK, dtype=np.float64)
    for update in updates:
        deltas = map_weights(update.path)
        if not totals:
            totals = {name: np.zeros(delta.shape, dtype=np.float64) for name, delta in deltas.items()}
        for name, total in totals.items():
            _add_scaled(total.reshape(-1), deltas[name].reshape(-1), update.num_examples, wide)
    for total in totals.values():
        total /= num_examples
    return Aggregate(delta=totals, num_examples=num_examples, num_clients=len(updates))


def _add_scaled(total: npt.NDArray[Any], delta: npt.NDArray[Any], weight: int, wide: npt.NDArray[np.float64]) -> None:
    """total += weight * delta, in float64, by blocks. All are one-dimensional; `wide` is scratch space."""
    for start in range(0, len(total), len(wide)):
        part = total[start : start + len(wide)]
        scratch = wide[: len(part)]
        np.multiply(delta[start : start + len(wide)], weight, out=scratch, dtype=np.float64)
        part += scratch

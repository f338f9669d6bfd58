"""How a round's updates become one: the weighted mean, streamed from their files. Pure, torch-free.

One accumulator of float64, twice the size of the weights, whatever the number of clients. Each element is summed over
the updates in the order of the clients, so the same updates give the same bits. float64 needs no compensation: the sum
of ten thousand float32 values is exact to the last float32 bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trainer.federated.encoding import UpdateFile
from trainer.federated.facts import RoundFacts
from trainer.sections.federated import Encoding
from trainer.weights import BLOCK, Weights

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor by its name."""

FILES_AT_A_TIME = 64
"""Files that are mapped at once. A map holds a file descriptor, and a process has few of them."""


@dataclass(frozen=True)
class ClientUpdate:
    """One accepted update: the file, and what the client says beside it (`protocol.UpdateOffer`)."""

    path: Path
    client: int
    """Index among the job's clients."""
    num_examples: int
    num_steps: int = 0
    """Optimizer steps of the round."""
    loss_before: float | None = None
    """Mean loss of the incoming weights on the training rows."""
    staleness: int = 0
    """Rounds that the weights it was trained from are behind (FedBuff)."""


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates come to."""

    delta: Weights
    """The update that the server applies, float64."""
    facts: RoundFacts
    variate: Weights | None = None
    """SCAFFOLD: what is to be added to the server's control variate, float64."""
    clip_norm: float | None = None
    """Privacy: the clip norm of the next round, where it adapts."""


@dataclass(frozen=True)
class Weighting:
    """The mean as sum(factor_i * delta_i) / divisor. Whole factors, such as examples, keep the sum exact."""

    factors: Sequence[float]
    divisor: float

    @property
    def shares(self) -> list[float]:
        """Each update's share in the result; they sum to 1."""
        total = math.fsum(self.factors)
        return [factor / total for factor in self.factors]


class RoundUpdates:
    """The updates of one round, by client index, and their decoded deltas."""

    def __init__(self, updates: Sequence[ClientUpdate], encoding: Encoding, shapes: Shapes) -> None:
        """`shapes` are those of the deltas, decoded. The updates have passed `check_update`.

        Raises ValueError where there are none.
        """
        if not updates:
            raise ValueError("There is nothing to aggregate: the round has no update.")
        self.clients = sorted(updates, key=lambda update: update.client)
        self.shapes = shapes
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self.clients)

    def open(self, index: int) -> UpdateFile:
        """Map an update's file; the map ends with the last reference to it."""
        return UpdateFile(self.clients[index].path, self._encoding, self.shapes)

    @cached_property
    def norms(self) -> list[float]:
        """Euclidean norm of each update. Reads all of them, one at a time."""
        return [self.open(index).norm() for index in range(len(self))]


Weigh = Callable[[RoundUpdates], Weighting]
Combine = Callable[[RoundUpdates, Weigh], Aggregate]
"""Makes one update of many. Rules that choose single coordinates or updates do not ask for weights."""


def weighted_mean(updates: RoundUpdates, weigh: Weigh) -> Aggregate:
    """sum(factor_i * delta_i) / divisor: with examples as factors, FedAvg (McMahan et al. 2017, algorithm 1)."""
    weighting = weigh(updates)
    delta, norms = weighted_sum(updates, weighting.factors, weighting.divisor)
    return Aggregate(delta=delta, facts=RoundFacts(weights=weighting.shares, norms=norms))


def weighted_sum(updates: RoundUpdates, factors: Sequence[float], divisor: float) -> tuple[Weights, list[float]]:
    """Return sum(factor_i * delta_i) / divisor, float64, and the Euclidean norm of each delta. Reads each file once.

    Many files at a time, block by block: otherwise the accumulator, larger than any cache, would pass through it for each
    single update, which took 1.7 times as long.
    """
    totals = zeros(updates.shapes)
    squares = [0.0] * len(updates)
    wide = np.empty(BLOCK, dtype=np.float64)
    for first in range(0, len(updates), FILES_AT_A_TIME):
        group = range(first, min(first + FILES_AT_A_TIME, len(updates)))
        files = [updates.open(index) for index in group]
        for name, total in totals.items():
            flat = total.reshape(-1)
            for start, stop in blocks(flat.size):
                scratch, part = wide[: stop - start], flat[start:stop]
                for index, file in zip(group, files, strict=True):
                    scratch[:] = file.block(name, start, stop)
                    squares[index] += float(scratch @ scratch)
                    scratch *= factors[index]
                    part += scratch
                if group.stop == len(updates):
                    part /= divisor
    return totals, [math.sqrt(square) for square in squares]


def mean_variate(updates: RoundUpdates, num_clients: int) -> Weights:
    """Return sum(dc_i) / N, float64: by how much the server's control variate changes when of N clients some have returned.

    That is |S|/N times their mean (SCAFFOLD, Karimireddy et al. 2020, algorithm 1, line 17).
    """
    totals = zeros(updates.shapes)
    for index in range(len(updates)):
        file = updates.open(index)
        for name, total in totals.items():
            total += file.variate(name)
    for total in totals.values():
        total /= num_clients
    return totals


def zeros(shapes: Shapes) -> Weights:
    """Return accumulators: tensors of zeros, float64."""
    return {name: np.zeros(shapes[name], dtype=np.float64) for name in sorted(shapes)}


def blocks(size: int, width: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive stretches of at most `width` elements."""
    for start in range(0, size, width):
        yield start, min(start + width, size)

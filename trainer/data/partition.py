"""Who gets which rows. Pure: the same seed deals the same rows on every node, and nobody has to send any. Torch-free.

Each scheme deals positions 0..n-1 to the clients: disjoint, covering, and every client gets at least one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.sections.data import DirichletPartition, IidPartition, Partition, ShardsPartition

Positions = npt.NDArray[np.int64]


def deal_iid(_: IidPartition, labels: npt.NDArray[Any], num_clients: int, rng: np.random.Generator) -> list[Positions]:
    """Shuffle the rows and deal them evenly."""
    return np.array_split(rng.permutation(len(labels)), num_clients)


def deal_shards(
    options: ShardsPartition, labels: npt.NDArray[Any], num_clients: int, rng: np.random.Generator
) -> list[Positions]:
    """Sort by label, cut into equal shards, deal each client `shards_per_client` of them (McMahan et al. 2017, sec. 3)."""
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, num_clients * options.shards_per_client)
    hands = rng.permutation(len(shards)).reshape(num_clients, -1)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


def deal_dirichlet(
    options: DirichletPartition, labels: npt.NDArray[Any], num_clients: int, rng: np.random.Generator
) -> list[Positions]:
    """Split each label's rows by proportions p ~ Dirichlet(alpha) over the clients (after Hsu et al. 2019)."""
    parts: list[list[Positions]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(num_clients, options.alpha))
        cuts = np.round(np.cumsum(proportions)[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


DEALS: dict[str, Callable[[Any, npt.NDArray[Any], int, np.random.Generator], list[Positions]]] = {
    "iid": deal_iid,
    "shards": deal_shards,
    "dirichlet": deal_dirichlet,
}


def partition_rows(partition: Partition, labels: npt.NDArray[Any], num_clients: int, seed: int) -> list[Positions]:
    """Return each client's positions among `labels`, (n,), sorted. Needs n >= num_clients."""
    assert len(labels) >= num_clients
    parts = DEALS[partition.scheme](partition, labels, num_clients, np.random.default_rng([seed, num_clients]))
    _feed_the_empty(parts)
    return [np.sort(part) for part in parts]


def _feed_the_empty(parts: list[Positions]) -> None:
    """Give each client without rows one of the client that has most. Draws leave some empty-handed, and a mean over no rows is NaN."""
    for index, part in enumerate(parts):
        if len(part) == 0:
            richest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[index], parts[richest] = parts[richest][-1:], parts[richest][:-1]

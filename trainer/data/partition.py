"""Who gets which rows. Pure: the same seed deals the same rows on every node, and nobody has to send any. Torch-free.

Each scheme deals positions 0..n-1 to the clients: disjoint, covering, and every client gets at least one. It looks at
one key for each row: the row's label, or its value in the column that `column` names.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.sections.data import (
    ColumnPartition,
    DirichletPartition,
    IidPartition,
    Partition,
    QuantityPartition,
    ShardsPartition,
)

Positions = npt.NDArray[np.int64]


class CannotDeal(ValueError):
    """The rows cannot be dealt to so many clients. The text is the end of a sentence that names the source."""


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
        for part, piece in zip(parts, _cut_at_random(rows, options.alpha, num_clients, rng), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def deal_quantity(
    options: QuantityPartition, labels: npt.NDArray[Any], num_clients: int, rng: np.random.Generator
) -> list[Positions]:
    """Shuffle the rows and cut them by shares q ~ Dirichlet(alpha) over the clients (Li et al. 2022, sec. IV-C)."""
    return _cut_at_random(rng.permutation(len(labels)), options.alpha, num_clients, rng)


def deal_column(
    options: ColumnPartition, values: npt.NDArray[Any], num_clients: int, rng: np.random.Generator
) -> list[Positions]:
    """Keep rows of one value together. Raises CannotDeal where there are fewer values than clients.

    The most frequent values go first, each to the client with the fewest rows so far (ties by its index), which keeps
    the sizes as even as the values allow. Nothing is drawn.
    """
    _, of_row, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) < num_clients:
        raise CannotDeal(
            f"has {len(counts)} different values of '{options.column}' in its training rows, and the job has "
            f"{num_clients} clients: lower the number of clients, or split by another column."
        )
    client_of_value = np.empty(len(counts), dtype=np.int64)
    hands = [(0, client) for client in range(num_clients)]
    for value in np.argsort(-counts, kind="stable"):
        num_rows, client = hands[0]
        client_of_value[value] = client
        heapq.heapreplace(hands, (num_rows + int(counts[value]), client))
    of_client = client_of_value[of_row]
    by_client = np.argsort(of_client, kind="stable")
    return np.split(by_client, np.searchsorted(of_client[by_client], np.arange(1, num_clients)))


def _cut_at_random(rows: Positions, alpha: float, num_clients: int, rng: np.random.Generator) -> list[Positions]:
    """Cut the rows, in their order, into shares drawn from Dirichlet(alpha)."""
    shares = rng.dirichlet(np.full(num_clients, alpha))
    return np.split(rows, np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64))


DEALS: dict[str, Callable[[Any, npt.NDArray[Any], int, np.random.Generator], list[Positions]]] = {
    "iid": deal_iid,
    "shards": deal_shards,
    "dirichlet": deal_dirichlet,
    "quantity": deal_quantity,
    "column": deal_column,
}


def partition_rows(partition: Partition, keys: npt.NDArray[Any], num_clients: int, seed: int) -> list[Positions]:
    """Return each client's positions among `keys`, sorted: those are the rows' labels, or values of the column, (n,).

    Needs n >= num_clients. Raises CannotDeal.
    """
    assert len(keys) >= num_clients
    parts = DEALS[partition.scheme](partition, keys, num_clients, np.random.default_rng([seed, num_clients]))
    _feed_the_empty(parts)
    return [np.sort(part) for part in parts]


def _feed_the_empty(parts: list[Positions]) -> None:
    """Give each client without rows one of the client that has most. Draws leave some empty-handed, and a mean over no rows is NaN."""
    # A heap, not a search for each: of ten thousand clients, nearly all may be empty-handed.
    richest = [(-len(part), index) for index, part in enumerate(parts)]
    heapq.heapify(richest)
    for index, part in enumerate(parts):
        if len(part) == 0:
            size, giver = richest[0]
            parts[index], parts[giver] = parts[giver][-1:], parts[giver][:-1]
            heapq.heapreplace(richest, (size + 1, giver))

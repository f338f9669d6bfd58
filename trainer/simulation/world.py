"""The ranks of a simulation, and how they talk: gloo, on GPUs too, for what they say to each other is small and on the CPU.

Every method is collective: all ranks call it, in the same order. What a rank loses is not caught: its processes end, and the
agents of all nodes with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed as dist

from trainer.sections.federated import Federated
from trainer.simulation.plan import SimulationFailed
from trainer.weights import Weights

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the slowest at least. A rank that died is noticed at once; this ends the wait for one that hangs."""


def patience_of(federated: Federated) -> timedelta:
    """Return how long the ranks wait for each other: as long as the server waits for a round, where that is longer."""
    return max(PATIENCE, timedelta(seconds=2 * federated.round_deadline_seconds))


class World:
    """One rank's view. Ranks are numbered node by node, as torch elastic does."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.ranks_per_node = int(os.environ["LOCAL_WORLD_SIZE"])

    @property
    def is_first_on_node(self) -> bool:
        return self.rank % self.ranks_per_node == 0

    @property
    def num_nodes(self) -> int:
        return self.size // self.ranks_per_node

    def node_of(self, rank: int) -> int:
        return rank // self.ranks_per_node

    def wait(self) -> None:
        """Return when all ranks have come here."""
        self.total(np.zeros(1))

    def total(self, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the elementwise sum over all ranks, to each of them. Where all but one say 0, it is that one's, to the bit."""
        tensor = torch.from_numpy(table)
        dist.all_reduce(tensor)
        return table

    def share(self, given: Weights | None, like: Weights) -> Weights:
        """Return rank 0's float32 tensors on every rank; the others give None. `like` has their names and shapes."""
        names = sorted(like)
        if given is None:
            flat = np.empty(sum(like[name].size for name in names), np.float32)
        else:
            flat = np.concatenate([given[name].reshape(-1) for name in names])
        dist.broadcast(torch.from_numpy(flat), 0)
        ends = np.cumsum([like[name].size for name in names])
        parts = np.split(flat, ends[:-1])
        return {name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)}

    def draw(self, drawn: Sequence[int] | None, total: int) -> list[int]:
        """Return rank 0's draw of clients, indices below `total`, on every rank; the others give None."""
        table = torch.zeros(total, dtype=torch.uint8)
        if drawn is not None:
            table[list(drawn)] = 1
        dist.broadcast(table, 0)
        return [int(index) for index in table.nonzero().flatten()]

    def bring(self, files: Sequence[tuple[int, Path]]) -> list[Path]:
        """Bring files of other nodes to rank 0's, and return there which came. `files` are (the rank that has it, path in this node's
        folder), alike on all."""
        came: list[Path] = []
        for rank, path in files:
            if self.node_of(rank) == 0:
                continue
            if self.rank == rank:
                data = torch.from_numpy(np.fromfile(path, np.uint8))
                dist.send(torch.tensor([len(data)]), 0)
                dist.send(data, 0)
            elif self.rank == 0:
                size = torch.zeros(1, dtype=torch.int64)
                dist.recv(size, rank)
                received: npt.NDArray[Any] = np.empty(int(size), np.uint8)
                dist.recv(torch.from_numpy(received), rank)
                received.tofile(path)
                came.append(path)
        return came


@contextmanager
def meeting(patience: timedelta) -> Iterator[World]:
    """Meet the other ranks, as torch elastic's environment says. Raises SimulationFailed where one of them hangs."""
    dist.init_process_group("gloo", timeout=patience)
    try:
        yield World()
    except RuntimeError as error:
        if "timed out" in str(error).lower():
            minutes = patience.total_seconds() / 60
            raise SimulationFailed(
                f"Another rank said nothing for {minutes:g} minutes: look whether a process or the network of one of the nodes hangs."
            ) from error
        raise
    finally:
        dist.destroy_process_group()

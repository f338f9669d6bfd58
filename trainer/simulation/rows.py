"""The rows of a simulation's clients: one data set in memory, dealt once, however many clients and processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.data.labels import count_labels
from trainer.data.prepare import Dataset, prepare_clients
from trainer.data.source import Source
from trainer.simulation.world import World
from trainer.spec import JobSpec
from trainer.weights import write_weights


class VirtualRows:
    """All rows, and who has which of the training rows."""

    def __init__(self, dataset: Dataset, order: Tensor, counts: Tensor) -> None:
        """`order`: positions of training rows, client by client, each client's ascending. `counts`: how many each has."""
        self._dataset = dataset
        self._order = order
        self._ends: list[int] = counts.cumsum(0).tolist()
        self.test_x, self.test_y = dataset.test_x, dataset.test_y

    @property
    def num_clients(self) -> int:
        return len(self._ends)

    def num_rows(self, client: int) -> int:
        """Training rows of a client."""
        return self._ends[client] - (self._ends[client - 1] if client else 0)

    def of(self, client: int) -> Dataset:
        """Return the client's training rows, a copy for as long as they are used, and the test rows, which all share."""
        end = self._ends[client]
        rows = self._order[end - self.num_rows(client) : end]
        return self._dataset._replace(train_x=self._dataset.train_x[rows], train_y=self._dataset.train_y[rows])

    def label_counts(self, client: int, source: Source) -> dict[str, int]:
        """Return the client's training rows of each class."""
        end = self._ends[client]
        labels = self._dataset.train_y[self._order[end - self.num_rows(client) : end]]
        return count_labels(self._dataset._replace(train_y=labels.cpu()), source.description)


def share_rows(spec: JobSpec, source: Source, world: World, folder: Path, device: torch.device) -> VirtualRows:
    """Return the rows; on the CPU, all ranks of a node map one file of them in its work folder.

    Each rank with rows of its own would cost the data set once a process, and three times that while they are prepared.
    Raises SourceError where the source cannot be used.
    """
    assert spec.federated is not None
    file = folder / "rows.safetensors"
    if world.is_first_on_node:
        dataset, parts = prepare_clients(spec, source, spec.federated.clients.total)
        tensors = {name: tensor.numpy() for name, tensor in dataset._asdict().items()}
        dealt = {"order": np.concatenate(parts), "counts": np.array([len(part) for part in parts])}
        write_weights(file, tensors | dealt)
        del dataset, tensors, parts, dealt
    world.wait()
    mapped = load_file(file)
    order, counts = mapped.pop("order"), mapped.pop("counts")
    return VirtualRows(Dataset(**mapped).to(device), order.to(device), counts)

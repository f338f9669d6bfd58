"""Whole federated jobs in this process: the real clients, files and mathematics, without nodes and server."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tests.trainer.parts import builtin
from trainer.data.source import Source
from trainer.federated.aggregate import ClientUpdate
from trainer.federated.check import check_update
from trainer.federated.client import FederatedClient
from trainer.federated.initial import initial_weights
from trainer.federated.kept import ClientFiles
from trainer.federated.result import ClientResult
from trainer.federated.strategy import State, build_strategy
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.weights import map_weights, read_header, write_weights


class Job:
    """A job and all its clients. Files lie in `folder`; each round's updates have passed the server's door."""

    def __init__(self, spec: JobSpec, folder: Path, log: MetricLog, source: Source | None = None) -> None:
        assert spec.federated is not None
        self.spec = spec
        self.source = source or builtin(spec.data.source)
        self.federated = spec.federated
        self.folder = folder
        self.weights_path = folder / "weights.safetensors"
        self.memory_path = folder / "memory.safetensors"
        self.kept = folder / "kept"
        self._indices: dict[FederatedClient, int] = {}
        self.clients = [self.client(index, log) for index in range(self.federated.clients.num)]
        self.weights_path.write_bytes(initial_weights(spec, self.source.description))
        self.strategy = build_strategy(spec)
        self.state: State = self.strategy.init(map_weights(self.weights_path))
        self.number = 0
        self.counted = [0] * len(self.clients)

    def client(self, index: int, log: MetricLog) -> FederatedClient:
        """Return a client as a new runner would have it."""
        files = ClientFiles(self.kept, index)
        client = FederatedClient(self.spec, self.source, index, self.federated.clients.num, log, files=files)
        self._indices[client] = index
        return client

    def train(self, client: FederatedClient, number: int, update: Path) -> ClientResult:
        """Let a client train round `number` from the present weights and memory, and what it kept of its counted round."""
        memory = self.memory_path if self.memory_path.exists() else None
        counted = self.counted[self._indices[client]]
        return client.train_round(number, self.weights_path, update, memory_path=memory, counted_round=counted)

    def round(self, late: Collection[int] = ()) -> list[ClientResult]:
        """Run the next round with all clients. The updates of `late` ones, which train as well, come too late to count."""
        self.number += 1
        paths = [self.folder / f"update-{index}.safetensors" for index in range(len(self.clients))]
        results = [self.train(client, self.number, path) for client, path in zip(self.clients, paths, strict=True)]
        header = read_header(self.weights_path)
        for path in paths:
            check_update(path, header, self.federated)
        updates = [
            ClientUpdate(path, index, result.num_examples, result.num_steps, result.loss_before)
            for index, (path, result) in enumerate(zip(paths, results, strict=True))
            if index not in late
        ]
        for update in updates:
            self.counted[update.client] = self.number
        self.state = self.strategy.step(self.state, self.strategy.aggregate(self.state, updates))
        write_weights(self.weights_path, self.state.weights)
        memory = {f"{kind}/{name}": value for kind, part in self.state.memory.items() for name, value in part.items()}
        if memory:
            write_weights(self.memory_path, memory)
        return results

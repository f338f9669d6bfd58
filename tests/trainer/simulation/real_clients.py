"""The same job with a client of its own for each index, as nodes have them: what a simulation must equal to the bit."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.parts import builtin
from trainer.federated.aggregate import ClientUpdate
from trainer.federated.check import check_update
from trainer.federated.client import FederatedClient
from trainer.federated.draw import draw_clients
from trainer.federated.initial import initial_weights
from trainer.federated.kept import ClientFiles
from trainer.federated.memory_files import flat_memory
from trainer.federated.strategy import State, build_strategy
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.weights import map_weights, read_header, write_weights


def train_real_clients(spec: JobSpec, folder: Path) -> State:
    """Run all rounds of the spec, each drawn client in its own FederatedClient, and return the state at the end."""
    assert spec.federated is not None
    source = builtin(spec.data.source)
    total = spec.federated.clients.total
    weights, memory = folder / "weights.safetensors", folder / "memory.safetensors"
    folder.mkdir()
    weights.write_bytes(initial_weights(spec, source.description))
    strategy = build_strategy(spec)
    state = strategy.init(map_weights(weights))
    counted: dict[int, int] = {}
    with MetricLog(1, "node", lambda _head, _data: None) as log:
        for number in range(1, spec.federated.rounds + 1):
            updates = []
            for index in draw_clients(spec, number):
                client = FederatedClient(spec, source, index, total, log, files=ClientFiles(folder / "kept", index))
                path = folder / f"update-{index}.safetensors"
                result = client.train_round(
                    number,
                    weights,
                    path,
                    memory_path=memory if state.memory else None,
                    counted_round=counted.get(index, 0),
                )
                check_update(path, read_header(weights), spec.federated)
                updates.append(ClientUpdate(path, index, result.num_examples, result.num_steps, result.loss_before))
                counted[index] = number
            state = strategy.step(state, strategy.aggregate(state, updates))
            write_weights(weights, state.weights)
            if state.memory:
                write_weights(memory, flat_memory(state.memory))
    return state

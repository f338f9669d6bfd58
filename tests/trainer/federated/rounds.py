"""Rounds of the server's mathematics by hand: specs, update files and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.federated.aggregate import Aggregate, ClientUpdate
from trainer.federated.encoding import encode_update
from trainer.federated.names import VARIATE
from trainer.federated.strategy import State, Strategy, build_strategy
from trainer.sections.federated import Encoding, Float32Encoding
from trainer.spec import JobSpec
from trainer.weights import Weights, write_weights

FLOAT32 = Float32Encoding(name="float32")


MODEL = {"name": "mlp", "options": {"hidden": [4], "norm": "layer"}}
"""Any strategy takes it, FedBN too; what the weights of a test look like is another thing."""


def strategy_of(num: int = 3, *, training: Mapping[str, Any] | None = None, **federated: Any) -> Strategy:
    """The algorithm of a spec with `num` clients; strategy, aggregator and server_optimizer may be bare names."""
    sections = {name: {"name": part} if isinstance(part, str) else part for name, part in federated.items()}
    spec = {
        "name": "test",
        "mode": "federated",
        "model": MODEL,
        "data": {"source": "digits"},
        "training": dict(training or {}),
        "federated": {"clients": {"num": num}, "rounds": 1, **sections},
    }
    return build_strategy(JobSpec.model_validate(spec))


def floats(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def write_updates(
    folder: Path,
    deltas: Sequence[Mapping[str, npt.ArrayLike]],
    *,
    encoding: Encoding = FLOAT32,
    variates: Sequence[Mapping[str, npt.ArrayLike]] | None = None,
    **said: Any,
) -> list[ClientUpdate]:
    """One update file for each client; `said` are the other fields of `ClientUpdate`, one value for each (examples: 1)."""
    updates = []
    for client, delta in enumerate(deltas):
        path = folder / f"update-{client}.safetensors"
        rng = np.random.default_rng(client)
        tensors, _ = encode_update({name: floats(value) for name, value in delta.items()}, encoding, rng=rng)
        if variates is not None:
            tensors |= {VARIATE + name: floats(value) for name, value in variates[client].items()}
        write_weights(path, tensors)
        fields = {"num_examples": 1} | {name: values[client] for name, values in said.items()}
        updates.append(ClientUpdate(path, client, **fields))
    return updates


def aggregate_of(
    folder: Path, strategy: Strategy, deltas: Sequence[npt.ArrayLike], state: State | None = None, **said: Any
) -> Aggregate:
    """What updates to one tensor `w` come to."""
    updates = write_updates(folder, [{"w": delta} for delta in deltas], **said)
    return strategy.aggregate(state or State({"w": np.zeros_like(floats(deltas[0]))}), updates)


def weights_of(**tensors: npt.ArrayLike) -> Weights:
    return {name: floats(value) for name, value in tensors.items()}

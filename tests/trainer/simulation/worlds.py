"""Simulations in this process and in others: whole jobs without agents and server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tests.trainer.parts import builtin
from trainer.data.source import Source
from trainer.federated.initial import initial_weights
from trainer.message import BlobRef
from trainer.simulation.messages import RoundStart, SimulatedRound
from trainer.simulation.plan import RoundPack, SimulationPlan
from trainer.simulation.rank import simulate
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog


class Outcome:
    """What rank 0 said."""

    def __init__(self) -> None:
        self.packs: list[RoundPack] = []
        self.heard: list[tuple[Any, bytes]] = []

    @property
    def rounds(self) -> list[SimulatedRound]:
        return [round_ for pack in self.packs for round_ in pack.rounds]

    @property
    def weights(self) -> bytes:
        return self.packs[-1].weights.read_bytes()


def start_of(spec: JobSpec, **changes: Any) -> RoundStart:
    assert spec.federated is not None
    nothing = BlobRef(digest="0" * 64, size_bytes=0)  # the plan says where the files lie
    return RoundStart(**{"round": 1, "last_round": spec.federated.rounds, "weights": nothing, **changes})


def plan_of(spec: JobSpec, folder: Path, source: Source | None = None, **changes: Any) -> SimulationPlan:
    """A plan that begins with the spec's first weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "first.safetensors"
    weights.write_bytes(initial_weights(spec, (source or builtin(spec.data.source)).description))
    fields: dict[str, Any] = {"start": start_of(spec), "weights": weights, "folder": folder, "kept": folder / "kept"}
    return SimulationPlan(**{**fields, **changes})


def be_rank(
    spec: JobSpec, source: Source, plan: SimulationPlan, *, rank: int, size: int, nodes: int, port: int
) -> Outcome:
    """Be one rank, from meeting to end."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size // nodes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    outcome = Outcome()
    open_log = lambda name: MetricLog(1, name, lambda head, data: outcome.heard.append((head, data)))  # noqa: E731
    simulate(spec, source, plan, open_log, outcome.packs.append)
    return outcome

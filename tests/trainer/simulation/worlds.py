"""Simulations in this process and in others: whole jobs without agents and server."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch

from tests.ports import free_port
from tests.trainer.parts import builtin
from trainer.data.source import Source
from trainer.federated.initial import initial_weights
from trainer.message import BlobRef
from trainer.simulation.messages import RoundStart, SimulatedRound
from trainer.simulation.plan import RoundPack, SimulationPlan
from trainer.simulation.rank import simulate
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog, unpack_points

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Outcome:
    """What rank 0 said."""

    def __init__(self) -> None:
        self.packs: list[RoundPack] = []
        self.heard: list[tuple[Any, bytes]] = []

    @property
    def rounds(self) -> list[SimulatedRound]:
        return [round_ for pack in self.packs for round_ in pack.rounds]

    def curves(self, source: str) -> dict[str, list[tuple[int, float]]]:
        """Metric name -> (step, value) of one source, in order of arrival."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for head, data in self.heard:
            for series in unpack_points(head, data):
                if series.source == source:
                    points = zip(series.steps.tolist(), series.values.tolist(), strict=True)
                    curves.setdefault(series.name, []).extend(points)
        return curves

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


def small_spec(model: dict[str, Any] | None = None, clients: dict[str, Any] | None = None, **federated: Any) -> JobSpec:
    """Nine virtual clients of quite different sizes, four of them in each of four rounds."""
    raw = {
        "name": "test",
        "mode": "federated",
        "model": model or {"name": "linear"},
        "data": {"source": "digits", "partition": {"scheme": "quantity", "alpha": 2.0}},
        "training": {"batch_size": 10},
        "federated": {"rounds": 4, "clients": {"simulate": 9, "per_round": 4, **(clients or {})}, **federated},
    }
    return JobSpec.model_validate(raw)


def alone(spec: JobSpec, folder: Path, **plan: Any) -> Outcome:
    """Run a simulation of one rank in this process."""
    source = builtin(spec.data.source)
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    try:
        return be_rank(spec, source, plan_of(spec, folder, **plan), rank=0, size=1, nodes=1, port=free_port())
    finally:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def together(spec: JobSpec, folder: Path, *, size: int, nodes: int, **plan: Any) -> Outcome:
    """Run a simulation of several ranks, each in a process of its own; nodes have folders of their own."""
    source = builtin(spec.data.source)
    port = free_port()
    plans = [
        plan_of(spec, folder / f"node-{rank // (size // nodes)}", **plan).model_dump_json() for rank in range(size)
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.simulation.rank", "tests.trainer.simulation.worlds"])
    queue: Any = context.SimpleQueue()
    args = [
        (spec.model_dump_json(), source.model_dump_json(), plans[rank], rank, size, nodes, port, queue)
        for rank in range(size)
    ]
    processes = [context.Process(target=_in_process, args=arg) for arg in args]
    for process in processes:
        process.start()
    packs = queue.get()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    outcome = Outcome()
    outcome.packs = [RoundPack.model_validate_json(pack) for pack in packs]
    return outcome


def _in_process(spec: str, source: str, plan: str, rank: int, size: int, nodes: int, port: int, queue: Any) -> None:
    outcome = be_rank(
        JobSpec.model_validate_json(spec),
        Source.model_validate_json(source),
        SimulationPlan.model_validate_json(plan),
        rank=rank,
        size=size,
        nodes=nodes,
        port=port,
    )
    if rank == 0:
        queue.put([pack.model_dump_json() for pack in outcome.packs])

"""100 MB of weights on two nodes: what a round costs beside the training."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from math import prod
from typing import Any

from benchmarks.bench_federated import rival_run, tell
from benchmarks.bench_road import overheads_of
from benchmarks.ground import Ground
from benchmarks.memory import PeakMemory
from benchmarks.rivals.write_exercise import write_untrained
from benchmarks.table import Figure
from tests.realstack import Stack

HIDDEN = [4900, 5000]
SHAPES: dict[str, tuple[int, ...]] = {
    "1.weight": (4900, 64),
    "1.bias": (4900,),
    "3.weight": (5000, 4900),
    "3.bias": (5000,),
    "5.weight": (10, 5000),
    "5.bias": (10,),
}
MEGABYTES = sum(prod(shape) for shape in SHAPES.values()) * 4 / 1e6
ROUNDS = 10
SERVER = ("broker", "web", "conductor", "beat", "ingest")
SPEC: dict[str, Any] = {
    "name": "100 MB of weights",
    "mode": "federated",
    "model": {"name": "mlp", "options": {"hidden": HIDDEN}},
    # Two steps on a few rows: all of the weights change, and hardly anything is trained.
    "data": {"source": "digits", "test_fraction": 0.9},
    "training": {"optimizer": {"name": "sgd", "lr": 0.01}, "batch_size": 64},
    "federated": {"rounds": ROUNDS, "clients": {"num": 2}, "evaluate_every": ROUNDS},
}


def measure(ground: Ground) -> Iterator[Figure]:
    """Rounds of ours less the clients' two steps; rounds of rivals whose clients only add a number to each weight."""
    overheads: list[float] = []
    peaks: list[float] = []
    rivals: dict[str, list[float]] = {}
    for turn in range(ground.turns):
        ground.stack.wait_nodes()
        with PeakMemory(*(ground.stack.pid_of(name) for name in SERVER)) as memory:
            overheads += untrained_rounds(ground.stack)
        peaks.append(memory.peak_bytes / 1e9)
        for name in sorted(ground.rivals):
            exercise = ground.folder / f"large-{name}-{turn}"
            exercise.mkdir()
            write_untrained(exercise, shapes=SHAPES, rounds=3, clients=2)
            run = rival_run(name, exercise)
            tell(name, run)
            rivals.setdefault(name, []).append(statistics.median(run.round_seconds[1:]))
    beside = "Flower 1.42: 10 s; NVIDIA FLARE 2.9: 4.1 s"
    title = f"{MEGABYTES:.0f} MB of weights, two nodes"
    yield Figure(f"{title}: a round without its training", overheads, "s", 0.8, reference=beside)
    yield Figure(f"{title}: the server's peak memory", peaks, "GB", 1.6, reference="Flower: 2.2 GB; FLARE: 1.6 GB")
    for name, seconds in rivals.items():
        shares = [statistics.median(overheads) / theirs for theirs in seconds]
        goal = 1 / 4 if name == "nvflare" else 1 / 10
        yield Figure(f"{title}: a round / {name}'s", shares, "x", goal, reference=f"{statistics.median(seconds):.1f} s")


def untrained_rounds(stack: Stack) -> list[float]:
    job = stack.submit(SPEC)
    stack.wait_state(job, "finished", seconds=300)
    return overheads_of(stack, job)

"""Federated rounds on two nodes against a plain loop over the clients, and against rivals."""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import mnist
from benchmarks.bench_road import overheads_of
from benchmarks.ground import Ground
from benchmarks.plain import run_plain
from benchmarks.rivals import flare, flower
from benchmarks.rivals.rival import Run
from benchmarks.rivals.write_exercise import write_exercise
from benchmarks.table import Figure
from tests.realstack import Stack

SPEC: dict[str, Any] = {
    "name": "MNIST, 2NN of the FedAvg paper",
    "mode": "federated",
    "seed": 0,
    "model": {"name": "mlp", "options": {"hidden": [200, 200]}},
    "data": {"source": mnist.NAME, "test_fraction": 0.2, "partition": {"scheme": "iid"}, "scaling": "none"},
    "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32},
    "federated": {"rounds": 10, "local_epochs": 1, "clients": {"num": 2}},
}
FLOWER = "Flower 1.42: 111 s, NVIDIA FLARE 2.9: 43 s"
"""Submission to the end of 10 rounds on this kind of machine, where they are not run beside."""
FLOWER_SECONDS = 111.0


def measure(ground: Ground) -> Iterator[Figure]:
    """Submission to the end of 10 rounds, the rounds' overhead, and the accuracy beside the plain loop's and the rivals'."""
    if ground.rows is None:
        return
    stack, exercise = ground.stack, ground.folder / "two-nodes"
    exercise.mkdir()
    write_exercise(exercise, SPEC, ground.rows)
    ours: list[float] = []
    plain: list[float] = []
    overheads: list[float] = []
    gaps: list[float] = []
    rivals: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(ground.turns):
        stack.wait_nodes()
        started = time.monotonic()
        job = stack.submit(SPEC)
        stack.wait_state(job, "finished", seconds=300)
        ours.append(time.monotonic() - started)
        overheads += overheads_of(stack, job)
        loop = run_plain(exercise)
        plain.append(loop.seconds)
        number, accuracy = last_accuracy(stack, job)
        gaps.append(abs(loop.accuracies[number - 1] - accuracy) * 100)
        for name in sorted(ground.rivals):
            run = rival_run(name, exercise)
            rivals[name].append(run.seconds)
            tell(name, run)
    beside = f"plain loop {min(plain):.2f} s"
    beside += "" if rivals else f"; {FLOWER}"
    yield Figure("MNIST 2NN, two nodes, 10 rounds, submit to end", ours, "s", FLOWER_SECONDS / 25, reference=beside)
    for name, seconds in rivals.items():
        ratios = [mine / theirs for mine, theirs in zip(ours, seconds, strict=True)]
        goal = 1 / 25 if name == "flower" else 1.0
        yield Figure(f"the same / {name}", ratios, "x", goal, reference=f"{name}: {statistics.median(seconds):.1f} s")
    yield Figure("MNIST 2NN, overhead of a round", overheads, "s", 0.05, reference="Flower 1.42: about 9 s")
    yield Figure(
        "MNIST 2NN, accuracy away from the plain loop's",
        gaps,
        "points",
        0.5,
        reference=f"plain: {loop.accuracies[-1]:.4f}",
    )


def rival_run(name: str, exercise: Path) -> Run:
    """Run the exercise on a rival's warm deployment of two nodes."""
    if name == "nvflare":
        with flare.deployment(2) as there:
            return there.run(exercise)
    with flower.deployment(2, poll_seconds=0.05 if name == "flower-quick" else None) as here:
        return here.run(exercise)


def tell(name: str, run: Run) -> None:
    """Say what a rival did, beside the table."""
    accuracy = f", accuracy {run.accuracies[-1]:.4f}" if run.accuracies[-1] is not None else ""
    rounds = statistics.median(run.round_seconds)
    print(
        f"{name}: {run.seconds:.1f} s, {rounds:.2f} s a round, server {run.server_bytes / 1e9:.2f} GB{accuracy}",
        file=sys.stderr,
    )


def last_accuracy(stack: Stack, job: int) -> tuple[int, float]:
    """Return the newest global weights that the clients measured, by their round, and the accuracy of these."""
    curves = stack.get(f"/jobs/{job}/metrics", name="global/accuracy", source="aggregate", points=1000)
    (series,) = curves["series"]
    return int(series["steps"][-1]), float(series["values"][-1])

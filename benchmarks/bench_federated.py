"""Federated rounds against a plain loop over the clients, and the aggregation against numpy."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks import mnist
from benchmarks.bench_road import overheads_of
from benchmarks.ground import Ground
from benchmarks.plain import run_plain
from benchmarks.rivals import flare, flower
from benchmarks.rivals.rival import Run
from benchmarks.rivals.write_exercise import write_exercise
from benchmarks.table import Figure
from tests.realstack import Stack
from trainer.federated.aggregate import ClientUpdate
from trainer.federated.check import check_update
from trainer.federated.strategy import build_strategy
from trainer.spec import JobSpec
from trainer.weights import map_weights, read_header

SPEC: dict[str, Any] = {
    "name": "MNIST, 2NN of the FedAvg paper",
    "mode": "federated",
    "seed": 0,
    "model": {"name": "mlp", "options": {"hidden": [200, 200]}},
    "data": {"source": mnist.NAME, "test_fraction": 0.2, "partition": {"scheme": "iid"}, "scaling": "none"},
    "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32},
    "federated": {"rounds": 10, "local_epochs": 1, "clients": {"num": 2}},
}
NUM_UPDATES, PARAMETERS = 32, 25_000_000
FLOWER = "Flower 1.42: 111 s, NVIDIA FLARE 2.9: 43 s"
"""Submission to the end of 10 rounds on this kind of machine, where they are not run beside."""
FLOWER_SECONDS = 111.0


def two_nodes(ground: Ground) -> Iterator[Figure]:
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


def aggregation(ground: Ground) -> Iterator[Figure]:
    """32 updates of 100 MB from disk: checked and averaged, beside read and added in numpy without any check."""
    spec = JobSpec.model_validate({**SPEC, "federated": {"clients": {"num": NUM_UPDATES}}})
    assert spec.federated is not None
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        paths = []
        for number in range(4):  # four files, each read eight times: the disk itself is not what is compared
            path = Path(folder, f"{number}.safetensors")
            save_file({"w": rng.standard_normal(PARAMETERS, dtype=np.float32)}, path)
            paths.append(path)
        paths = [paths[i % 4] for i in range(NUM_UPDATES)]
        strategy = build_strategy(spec)
        state = strategy.init(map_weights(paths[0]))
        weights = read_header(paths[0])
        ratios, seconds = [], []
        for _ in range(ground.turns):
            started = time.perf_counter()
            for path in paths:
                check_update(path, weights, spec.federated)
            updates = [ClientUpdate(path, client=i, num_examples=100) for i, path in enumerate(paths)]
            strategy.step(state, strategy.aggregate(state, updates))
            middle = time.perf_counter()
            total = np.zeros(PARAMETERS, dtype=np.float32)
            for path in paths:
                total += np.fromfile(path, dtype=np.float32, offset=path.stat().st_size - 4 * PARAMETERS)
            total /= NUM_UPDATES
            ended = time.perf_counter()
            ratios.append((middle - started) / (ended - middle))
            seconds.append(ended - middle)
    beside = f"numpy: {min(seconds):.2f} s"
    yield Figure("check and average 32 updates of 100 MB / numpy without checks", ratios, "x", 2.0, reference=beside)

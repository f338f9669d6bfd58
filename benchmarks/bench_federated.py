"""Federated rounds against a plain loop over the clients, and the aggregation against numpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks import mnist
from benchmarks.bench_road import overheads_of
from benchmarks.table import Figure
from tests.realstack import ROOT, Stack
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
TURNS = 3
NUM_UPDATES, PARAMETERS = 32, 25_000_000
FLOWER_SECONDS = 111.0
"""Flower 1.42, deployment engine, submission to the end of 10 rounds, on this kind of machine (not run here)."""


def measure(stack: Stack) -> Iterator[Figure]:
    """Measure on an idle stack."""
    if mnist.is_there():
        yield from two_nodes(stack)
    yield from aggregation()


def two_nodes(stack: Stack) -> Iterator[Figure]:
    """Submission to the end of 10 rounds, the rounds' overhead, and the accuracy beside the plain loop's."""
    with tempfile.TemporaryDirectory() as folder:
        rows, spec, out = Path(folder, "rows.npz"), Path(folder, "spec.json"), Path(folder, "out.json")
        mnist.write_rows(rows)
        mnist.declare(stack, rows)
        spec.write_text(json.dumps(SPEC))
        command = [sys.executable, str(ROOT / "benchmarks" / "plain_fedavg.py"), str(spec), str(rows), str(out)]
        ours, plain, overheads, gaps = [], [], [], []
        for _ in range(TURNS):
            stack.wait_nodes()
            started = time.monotonic()
            job = stack.submit(SPEC)
            stack.wait_state(job, "finished", seconds=300)
            ours.append(time.monotonic() - started)
            overheads += overheads_of(stack, job)
            subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"))
            result = json.loads(out.read_text())
            plain.append(result["seconds"])
            gaps.append(abs(result["accuracy"] - last_accuracy(stack, job)) * 100)
    beside = f"plain loop {min(plain):.2f} s; Flower 1.42: {FLOWER_SECONDS:.0f} s"
    yield Figure("MNIST 2NN, two nodes, 10 rounds, submit to end", ours, "s", FLOWER_SECONDS / 25, reference=beside)
    yield Figure("MNIST 2NN, overhead of a round", overheads, "s", 0.05, reference="Flower 1.42: about 9 s")
    yield Figure(
        "MNIST 2NN, accuracy away from the plain loop's",
        gaps,
        "points",
        0.5,
        reference=f"plain: {result['accuracy']:.4f}",
    )


def last_accuracy(stack: Stack, job: int) -> float:
    """The accuracy of the newest global weights that the clients measured."""
    curves = stack.get(f"/jobs/{job}/metrics", name="global/accuracy", source="aggregate", points=1000)
    return float(curves["series"][0]["values"][-1])


def aggregation() -> Iterator[Figure]:
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
        for _ in range(TURNS):
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

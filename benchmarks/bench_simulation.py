"""100 simulated clients, 10 a round, against a plain loop over the same clients and, where asked for, Flower's simulation engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import mnist
from benchmarks.bench_federated import tell
from benchmarks.ground import Ground
from benchmarks.plain import run_plain
from benchmarks.rivals import flower
from benchmarks.rivals.write_exercise import write_exercise
from benchmarks.table import Figure
from tests.realstack import Stack

IID = {"scheme": "iid"}
SHARDS = {"scheme": "shards", "shards_per_client": 2}
PROCESSES = 2
FLOWER_SECONDS = "20 to 27 s"
"""Flower 1.42's simulation engine on this kind of machine, where it is not run beside."""


def spec_of(
    *, seed: int, local_epochs: int, partition: dict[str, Any], rounds: int, clients: int = 100
) -> dict[str, Any]:
    """The FedAvg paper's 2NN at B = 10 and C = 0.1 (McMahan et al. 2017, table 1)."""
    return {
        "name": "MNIST, 2NN, simulated",
        "mode": "federated",
        "seed": seed,
        "model": {"name": "mlp", "options": {"hidden": [200, 200]}},
        "data": {"source": mnist.NAME, "test_fraction": 0.2, "partition": partition, "scaling": "none"},
        "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 10},
        "federated": {
            "rounds": rounds,
            "local_epochs": local_epochs,
            "clients": {"num": 1, "simulate": clients, "per_round": 10, "processes": PROCESSES},
        },
    }


def measure(ground: Ground) -> Iterator[Figure]:
    """Measure on an idle stack; the node is warm after the first job, which is not counted."""
    if ground.rows is None:
        return
    warm = spec_of(seed=0, local_epochs=1, partition=IID, rounds=2)
    ground.stack.wait_state(ground.stack.submit(warm), "finished", seconds=120)
    for local_epochs in (1, 5):
        for name, partition in (("IID", IID), ("2 shards", SHARDS)):
            yield from one_setting(ground, ground.rows, local_epochs, name, partition)


def one_setting(
    ground: Ground, rows: Path, local_epochs: int, name: str, partition: dict[str, Any]
) -> Iterator[Figure]:
    """20 rounds on each side, in turns; each turn has a seed of its own."""
    ours: list[float] = []
    ratios: list[float] = []
    gaps: list[float] = []
    flowers: list[float] = []
    loops: list[float] = []
    for turn in range(ground.turns):
        spec = spec_of(seed=turn, local_epochs=local_epochs, partition=partition, rounds=20)
        exercise = ground.folder / f"simulation-{local_epochs}-{partition['scheme']}-{turn}"
        exercise.mkdir()
        write_exercise(exercise, spec, rows)
        seconds, rounds = simulate(ground.stack, spec)
        ours.append(seconds)
        loop = run_plain(exercise)
        loops.append(loop.seconds)
        ratios.append(statistics.median(steady_seconds(rounds)) / statistics.median(loop.round_seconds))
        pairs = zip(accuracies_of(rounds), loop.accuracies, strict=True)
        gaps.append(statistics.fmean(abs(mine - theirs) for mine, theirs in pairs) * 100)
        if "flower" in ground.rivals:
            with flower.simulation(100, processes=PROCESSES) as server:
                run = server.run(exercise)
            tell("flower simulation", run)
            flowers.append(run.seconds)
    setting = f"100 simulated clients, E={local_epochs}, {name}"
    beside = f"plain loop, training alone: {statistics.median(loops):.1f} s"
    yield Figure(
        f"{setting}: 20 rounds, submit to end", ours, "s", 2.5, reference=f"{beside}; Flower: {FLOWER_SECONDS}"
    )
    yield Figure(f"{setting}: a round in the steady state / plain loop's", ratios, "x", 1 / 1.6, reference=beside)
    yield Figure(f"{setting}: mean distance of the accuracy curves", gaps, "points", 1.0, reference="the plain loop's")
    if flowers:
        shares = [mine / theirs for mine, theirs in zip(ours, flowers, strict=True)]
        beside = f"Flower: {statistics.median(flowers):.1f} s"
        yield Figure(f"{setting}: submit to end / Flower's simulation engine", shares, "x", 1 / 8, reference=beside)


def simulate(stack: Stack, spec: dict[str, Any]) -> tuple[float, list[dict[str, Any]]]:
    """Return the seconds from the submission to the end, and the rounds in order."""
    stack.wait_nodes()
    started = time.monotonic()
    job = stack.submit(spec)
    stack.wait_state(job, "finished", seconds=600)
    seconds = time.monotonic() - started
    return seconds, sorted(stack.items(f"/jobs/{job}/rounds"), key=lambda r: r["number"])


def steady_seconds(rounds: list[dict[str, Any]]) -> list[float]:
    """Return the rounds' seconds, evaluation on the test rows included, without the first: processes warm up in it."""
    return [
        (datetime.fromisoformat(r["closed_at"]) - datetime.fromisoformat(r["opened_at"])).total_seconds()
        for r in rounds[1:]
    ]


def accuracies_of(rounds: list[dict[str, Any]]) -> list[float]:
    return [float(r["metrics"]["server/accuracy"]) for r in rounds]

"""Secure aggregation beside the plain kind: 8 nodes, a million parameters, 2 nodes that drop out of every round."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import mnist
from benchmarks.ground import Ground, running_stack
from benchmarks.table import Figure
from tests.realstack import Stack

NODES, BROKEN = 8, 2
ROWS = 200
SPEC: dict[str, Any] = {
    "name": "A million parameters, 8 nodes",
    "mode": "federated",
    "model": {"name": "mlp", "options": {"hidden": [1000, 210]}},
    "data": {"source": mnist.NAME, "partition": {"scheme": "natural"}, "scaling": "none"},
    "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32},
    "federated": {"rounds": 10, "clients": {"num": NODES, "quorum": 0.5}, "evaluate_every": 10},
}


def measure(ground: Ground) -> Iterator[Figure]:
    """On a stack of its own, plain and masked jobs in turns. Who drops out has agreed on masks before, so that its own must be recovered."""
    if ground.rows is None:
        return
    plain: list[float] = []
    masked: list[float] = []
    sizes: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="trainmaster-secure-") as name,
        running_stack(Path(name), num_nodes=NODES) as stack,
    ):
        declare_rows(stack, ground.rows, Path(name))
        for _ in range(ground.turns):
            plain_seconds, plain_bytes = rounds_of(stack, SPEC)
            section = {**SPEC["federated"], "secure_aggregation": {}}
            masked_seconds, masked_bytes = rounds_of(stack, {**SPEC, "federated": section})
            plain += plain_seconds
            masked += masked_seconds
            sizes.append(masked_bytes / plain_bytes)
    middle = float(np.median(plain))
    beside = f"plain: {middle:.3f} s, masked: {float(np.median(masked)):.3f} s"
    title = f"{NODES} nodes, 1M parameters, {BROKEN} drop out"
    yield Figure(
        f"{title}: a masked round / a plain one's median", [s / middle for s in masked], "x", 1.5, reference=beside
    )
    yield Figure(f"{title}: bytes of updates, masked / plain", sizes, "x", 2.0)


def declare_rows(stack: Stack, rows: Path, folder: Path) -> None:
    """Give each node rows of its own. Those of the last nodes are so large that their training ends in what is no number."""
    with np.load(rows) as archive:
        x, y = archive["x"], archive["y"]
    paths: list[Path] = []
    for number in range(1, NODES + 1):
        own = slice((number - 1) * ROWS, number * ROWS)
        factor = np.float32(1e30 if number > NODES - BROKEN else 1)
        paths.append(folder / f"rows-{number}.npz")
        np.savez(paths[-1], x=x[own] * factor, y=y[own])
    mnist.declare(stack, paths)


def rounds_of(stack: Stack, spec: dict[str, Any]) -> tuple[list[float], int]:
    """Return each round's seconds, from its opening to the next one's without the first, and the bytes of all updates."""
    stack.wait_nodes()
    job = stack.submit(spec)
    stack.wait_state(job, "finished", seconds=300)
    rounds = sorted(stack.items(f"/jobs/{job}/rounds"), key=lambda r: r["number"])
    for round_ in rounds:
        returned = [p for p in round_["participations"] if p["state"] == "returned"]
        assert len(returned) == NODES - BROKEN, [
            (p["node"], p["state"], p["state_reason"]) for p in round_["participations"]
        ]
    opened = [datetime.fromisoformat(r["opened_at"]) for r in rounds[1:]]
    size = sum(p["size_bytes"] for r in rounds for p in r["participations"] if p["state"] == "returned")
    return [(after - before).total_seconds() for before, after in pairwise(opened)], size

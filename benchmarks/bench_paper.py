"""Rounds to an accuracy of 97 % for the 2NN at C = 0.1, E = 1, B = 10: McMahan et al. 2017, table 1, on the rows at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.bench_simulation import IID, SHARDS, accuracies_of, simulate, spec_of
from benchmarks.ground import Ground
from benchmarks.table import Figure

TARGET = 0.97
PAPER = {"IID": 87, "2 shards": 664}
"""Rounds in the paper, with 60,000 training rows."""
MOST_ROUNDS = {"IID": 500, "2 shards": 1500}


def measure(ground: Ground) -> Iterator[Figure]:
    """A job with an early stop at the target. Where it is not reached, the reference says how far it came."""
    if ground.rows is None:
        return
    partitions: dict[str, dict[str, Any]] = {"IID": IID, "2 shards": SHARDS}
    for name, partition in partitions.items():
        spec = spec_of(seed=0, local_epochs=1, partition=partition, rounds=MOST_ROUNDS[name])
        spec["federated"]["stop"] = {"metric": "server/accuracy", "target": TARGET}
        seconds, rounds = simulate(ground.stack, spec)
        best = max(accuracies_of(rounds))
        reached = f"97 % {'reached' if best >= TARGET else f'not reached: {best:.2%}'} in {seconds:.0f} s, 8,000 rows"
        beside = f"{reached}; the paper's: {PAPER[name]}, 60,000 rows"
        yield Figure(f"2NN, C=0.1, E=1, B=10, {name}: rounds", [len(rounds)], "rounds", PAPER[name], reference=beside)

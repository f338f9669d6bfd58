"""What a round's end computes, in a process of its own: check updates from disk, average them, step.

python benchmarks/aggregate_updates.py FOLDER NUM

FOLDER holds updates of one tensor as *.safetensors, which stand for NUM clients in turns. Prints the seconds.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle, islice
from pathlib import Path

from trainer.federated.aggregate import ClientUpdate
from trainer.federated.check import check_update
from trainer.federated.strategy import build_strategy
from trainer.spec import JobSpec
from trainer.weights import map_weights, read_header


def aggregate(folder: Path, num: int) -> float:
    """Return the seconds that it takes, without the loading of the global weights."""
    raw = {"name": "sum", "mode": "federated", "model": {"name": "mlp"}, "data": {"source": "digits"}}
    spec = JobSpec.model_validate({**raw, "federated": {"clients": {"num": num}}})
    assert spec.federated is not None
    paths = list(islice(cycle(sorted(folder.glob("*.safetensors"))), num))
    strategy = build_strategy(spec)
    state = strategy.init(map_weights(paths[0]))
    weights = read_header(paths[0])
    started = time.perf_counter()
    for path in paths:
        check_update(path, weights, spec.federated)
    updates = [ClientUpdate(path, client=i, num_examples=100) for i, path in enumerate(paths)]
    strategy.step(state, strategy.aggregate(state, updates))
    return time.perf_counter() - started


if __name__ == "__main__":
    print(aggregate(Path(sys.argv[1]), int(sys.argv[2])))

"""10,000 simulated clients on one node: the memory of everything that the node runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import mnist
from benchmarks.bench_simulation import IID, simulate, spec_of
from benchmarks.ground import Ground
from benchmarks.memory import PeakMemory
from benchmarks.table import Figure

CLIENTS = 10_000
ROUNDS = 20


def measure(ground: Ground) -> Iterator[Figure]:
    """The rows are copied until there is one for each client: what counts is the number of clients."""
    if ground.rows is None:
        return
    many = ground.folder / "many.npz"
    copies = mnist.copy_rows(ground.rows, many, at_least=CLIENTS * 5 // 4)
    mnist.declare(ground.stack, many, name=mnist.MANY)
    spec = spec_of(seed=0, local_epochs=1, partition=IID, rounds=ROUNDS, clients=CLIENTS)
    spec["data"]["source"] = mnist.MANY
    spec["federated"]["clients"]["per_round"] = 100
    agents = [PeakMemory(ground.stack.pid_of(f"node-{number + 1}")) for number in range(ground.stack.num_nodes)]
    with ExitStack() as watching:
        for agent in agents:
            watching.enter_context(agent)
        seconds, _ = simulate(ground.stack, spec)
    data = copies / 1e9
    beside = f"data set {data:.2f} GB; 100 clients a round, {seconds / ROUNDS:.2f} s each"
    more = max(agent.peak_bytes for agent in agents) / 1e9 - data  # the node that ran it; the other one idles
    yield Figure(
        f"{CLIENTS:,} simulated clients: peak memory above the data set's", [more], "GB", 1.0, reference=beside
    )

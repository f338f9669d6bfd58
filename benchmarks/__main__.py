"""Start a stack of its own, measure on it, print one table. docs/benchmarks.md says what each name measures.

python -m benchmarks [NAME ...] [--rivals flower,nvflare] [--turns 3]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from benchmarks import (
    bench_aggregation,
    bench_ddp,
    bench_federated,
    bench_large,
    bench_many,
    bench_paper,
    bench_road,
    bench_secure,
    bench_simulation,
)
from benchmarks.ground import Ground, prepared_ground
from benchmarks.table import Figure, print_figures

BENCHES: dict[str, Callable[[Ground], Iterator[Figure]]] = {
    "road": bench_road.measure,
    "federated": bench_federated.measure,
    "aggregation": bench_aggregation.measure,
    "simulation": bench_simulation.measure,
    "ddp": bench_ddp.measure,
    "large": bench_large.measure,
    "secure": bench_secure.measure,
    "many": bench_many.measure,
    "paper": bench_paper.measure,
}
QUICK = ("road", "federated", "aggregation", "simulation", "ddp")
"""What `make bench` measures."""
RIVALS = ("flower", "flower-quick", "nvflare")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Trainmaster beside others.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)}; none: {', '.join(QUICK)}")
    parser.add_argument("--rivals", default="", metavar="LIST", help=f"run them beside: {', '.join(RIVALS)}, or all")
    parser.add_argument("--turns", type=int, default=3, help="how often both sides of a comparison run (3)")
    options = parser.parse_args()
    rivals = RIVALS if options.rivals == "all" else tuple(filter(None, options.rivals.split(",")))
    for name, known in [*((n, BENCHES) for n in options.names), *((r, RIVALS) for r in rivals)]:
        if name not in known:
            parser.error(f"There is no '{name}': choose from {', '.join(known)}.")
    figures = []
    with prepared_ground(rivals=frozenset(rivals), turns=options.turns) as ground:
        for name in options.names or QUICK:
            for figure in BENCHES[name](ground):
                print(f"{figure.name}: {figure.value:.3g} {figure.unit}", file=sys.stderr)
                figures.append(figure)
    print_figures(figures)


if __name__ == "__main__":
    main()

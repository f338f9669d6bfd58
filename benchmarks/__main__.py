"""Start a stack of its own, measure everything on it, print one table. Takes about five minutes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks import bench_ddp, bench_federated, bench_road
from benchmarks.table import print_figures
from tests.realstack import Stack, wait_for


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="trainmaster-bench-") as folder:
        stack = Stack(Path(folder) / "home")
        try:
            stack.start()
            wait_for("the greeting", lambda: "is ready" in stack.output)
            stack.cancel_all()
            figures = []
            for bench in (bench_road, bench_federated, bench_ddp):
                for figure in bench.measure(stack):
                    print(f"{figure.name}: {figure.value:.3g} {figure.unit}", file=sys.stderr)
                    figures.append(figure)
        finally:
            if stack.is_running():
                stack.stop()
    print_figures(figures)


if __name__ == "__main__":
    main()

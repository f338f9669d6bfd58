"""What a benchmark is measured on: a stack of its own, MNIST's rows as a data source of its nodes, and whom to measure beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import mnist
from tests.realstack import Stack, digits, wait_for


@dataclass(frozen=True)
class Ground:
    stack: Stack
    """Running and idle, with two warm nodes."""
    folder: Path
    """For files of a benchmark; it goes when all are done."""
    rows: Path | None
    """MNIST as the nodes have it, under `mnist.NAME`; None where the machine lacks the files."""
    rivals: frozenset[str] = frozenset()
    """Whom to run beside: flower, flower-quick, nvflare. None: the figures measured earlier are named instead."""
    turns: int = 3
    """How often both sides of a comparison run, in turns."""


@contextmanager
def running_stack(folder: Path, *, num_nodes: int = 2) -> Iterator[Stack]:
    """Start a stack with its home below `folder`; its demo jobs are cancelled. Stopped at the end."""
    stack = Stack(folder / "home", num_nodes=num_nodes)
    try:
        stack.start()
        wait_for("the greeting", lambda: "is ready" in stack.output)
        stack.cancel_all()
        yield stack
    finally:
        if stack.is_running():
            stack.stop()


def warm_up(stack: Stack) -> None:
    """Let both nodes do a round: their agents were started just now, and are still importing torch."""
    stack.wait_state(stack.submit(digits(rounds=1)), "finished", seconds=120)
    stack.wait_nodes()


@contextmanager
def prepared_ground(*, rivals: frozenset[str], turns: int) -> Iterator[Ground]:
    """Start a stack whose two nodes declare MNIST, where the machine has it."""
    with tempfile.TemporaryDirectory(prefix="trainmaster-bench-") as name:
        folder = Path(name)
        with running_stack(folder) as stack:
            rows = None
            if mnist.is_there():
                rows = folder / "rows.npz"
                mnist.write_rows(rows)
                mnist.declare(stack, rows)
            warm_up(stack)
            yield Ground(stack, folder, rows, rivals, turns)

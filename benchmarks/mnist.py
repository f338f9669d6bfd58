"""MNIST's 10,000 test images as a node's data source, from their IDX files in TRAINMASTER_BENCH_DATA (default ../shared/data)."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.realstack import ROOT, Stack, wait_for

FOLDER = Path(os.environ.get("TRAINMASTER_BENCH_DATA") or ROOT.parent / "shared" / "data")
NAME = "mnist-10k"
MANY = "mnist-copied"


def is_there() -> bool:
    return (FOLDER / "t10k-images-idx3-ubyte.gz").exists()


def write_rows(path: Path) -> None:
    """Write the images (10,000, 1, 28, 28) and labels as NPZ."""
    images = gzip.decompress((FOLDER / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FOLDER / "t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    y = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    np.savez(path, x=x, y=y)


def copy_rows(rows: Path, path: Path, *, at_least: int) -> int:
    """Write so many rows, copies of those in `rows`; return the bytes of the images."""
    with np.load(rows) as archive:
        x, y = archive["x"], archive["y"]
    positions = np.arange(at_least) % len(y)
    np.savez(path, x=x[positions], y=y[positions])
    return int(x[0].nbytes * at_least)


def declare(stack: Stack, rows: Path | Sequence[Path], *, name: str = NAME) -> None:
    """Let all nodes declare the rows, or each of them its own, and start their agents again."""
    paths = [rows] * stack.num_nodes if isinstance(rows, Path) else rows
    for number, path in enumerate(paths, start=1):
        policy = stack.home / "nodes" / f"node-{number}" / "node.toml"
        source = f'\n[[sources]]\nname = "{name}"\npath = "{path}"\nlabel = "y"\ntask = "classification"\n'
        policy.write_text(policy.read_text() + source)
        stack.kill(f"node-{number}")

    def known() -> bool:
        return any(len(s["nodes"]) == stack.num_nodes for s in stack.get("/data-sources") if s["name"] == name)

    wait_for(f"{name} on all nodes", known)
    stack.wait_nodes()

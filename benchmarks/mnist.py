"""MNIST's 10,000 test images as a node's data source, from their IDX files in TRAINMASTER_BENCH_DATA (default ../shared/data)."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from tests.realstack import ROOT, Stack

FOLDER = Path(os.environ.get("TRAINMASTER_BENCH_DATA") or ROOT.parent / "shared" / "data")
NAME = "mnist-10k"


def is_there() -> bool:
    return (FOLDER / "t10k-images-idx3-ubyte.gz").exists()


def write_rows(path: Path) -> None:
    """Write the images (10,000, 1, 28, 28) and labels as NPZ."""
    images = gzip.decompress((FOLDER / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FOLDER / "t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    y = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    np.savez(path, x=x, y=y)


def declare(stack: Stack, rows: Path) -> None:
    """Let the stack's nodes declare the rows, and start their agents again."""
    for number in range(1, stack.num_nodes + 1):
        policy = stack.home / "nodes" / f"node-{number}" / "node.toml"
        source = f'\n[[sources]]\nname = "{NAME}"\npath = "{rows}"\nlabel = "y"\ntask = "classification"\n'
        policy.write_text(policy.read_text() + source)
        stack.kill(f"node-{number}")
    stack.wait_nodes()

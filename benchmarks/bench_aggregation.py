"""32 updates of 100 MB from disk: the time beside numpy's, and the memory beside that of 2 updates."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.aggregate_updates import aggregate
from benchmarks.ground import Ground
from benchmarks.memory import PeakMemory
from benchmarks.table import Figure
from tests.realstack import ROOT

NUM_UPDATES, PARAMETERS = 32, 25_000_000


def measure(ground: Ground) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for number in range(4):  # four files, each read eight times: the disk itself is not what is compared
            save_file({"w": rng.standard_normal(PARAMETERS, dtype=np.float32)}, folder / f"{number}.safetensors")
        pairs = [(aggregate(folder, NUM_UPDATES), add_in_numpy(folder)) for _ in range(ground.turns)]
        peaks = [(peak_bytes(folder, 2), peak_bytes(folder, NUM_UPDATES)) for _ in range(ground.turns)]
    beside = f"numpy: {min(theirs for _, theirs in pairs):.2f} s"
    ratios = [ours / theirs for ours, theirs in pairs]
    yield Figure("check and average 32 updates of 100 MB / numpy without checks", ratios, "x", 2.0, reference=beside)
    growth = [many / few for few, many in peaks]
    beside = f"2 updates: {peaks[0][0] / 1e9:.2f} GB"
    yield Figure("peak memory of 32 updates of 100 MB / of 2", growth, "x", 1.05, reference=beside)


def add_in_numpy(folder: Path) -> float:
    """Return the seconds of reading the same updates and adding them, without any check."""
    started = time.perf_counter()
    total = np.zeros(PARAMETERS, dtype=np.float32)
    for path in islice(cycle(sorted(folder.glob("*.safetensors"))), NUM_UPDATES):
        total += np.fromfile(path, dtype=np.float32, offset=path.stat().st_size - 4 * PARAMETERS)
    total /= NUM_UPDATES
    return time.perf_counter() - started


def peak_bytes(folder: Path, num: int) -> int:
    """Return the peak memory of a process that aggregates so many updates, which it maps: their pages are not counted."""
    command = [sys.executable, str(ROOT / "benchmarks" / "aggregate_updates.py"), str(folder), str(num)]
    with (
        subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.DEVNULL) as process,
        PeakMemory(process.pid) as memory,
    ):
        assert process.wait(timeout=120) == 0
    return memory.peak_own_bytes

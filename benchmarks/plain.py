"""Runs the plain loop at an exercise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.realstack import ROOT


@dataclass(frozen=True)
class PlainRun:
    """What came of a plain loop. The rounds' seconds are of training and averaging alone."""

    round_seconds: list[float]
    accuracies: list[float]

    @property
    def seconds(self) -> float:
        return sum(self.round_seconds)


def run_plain(exercise: Path) -> PlainRun:
    command = [sys.executable, str(ROOT / "benchmarks" / "plain_fedavg.py"), str(exercise)]
    subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"))
    told = json.loads((exercise / "result.json").read_text())
    return PlainRun([after - before for before, after in pairwise(told["times"])], told["accuracies"])

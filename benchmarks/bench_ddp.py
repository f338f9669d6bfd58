"""A DDP job's step against the same training under plain torchrun: interleaved, on the same two cores.

Both ranks are at work all the time, so what the server and the two agents beside them take of the two cores shows in
full: a rank that waits for a core lets the other wait as well.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.ground import Ground
from benchmarks.table import Figure
from tests.realstack import ROOT, Stack, digits

TURNS = 5
FOLDER = ROOT / "benchmarks"
Spec = dict[str, Any]


def spec_of(model: Spec, epochs: int) -> Spec:
    return {
        **digits("distributed", nodes=2, epochs=epochs),
        "model": model,
        "training": {"optimizer": {"name": "sgd", "lr": 0.05}, "batch_size": 64},
    }


CNN = spec_of({"name": "cnn", "options": {"channels": [64, 128], "hidden": 128}}, epochs=40)
"""Steps of some 11 ms, most of it computing."""
MLP = spec_of({"name": "mlp", "options": {"hidden": [512, 512]}}, epochs=80)
"""Steps of 4 to 5 ms, most of it gloo's exchange of 1.2 MB: the worst case for all that runs beside it on two cores."""


def measure(ground: Ground) -> Iterator[Figure]:
    """Measure on an idle stack. Each turn runs all sides once, every other turn in the reverse order."""
    stack = ground.stack
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(FOLDER / "plain_ddp.py")]
    for name, spec in (("cnn", CNN), ("mlp", MLP)):
        sides: dict[str, Callable[[Spec], float]] = {
            "a job": partial(job_seconds, stack),
            "its runners alone": partial(script_seconds, stack, [str(FOLDER / "lone_ranks.py")]),
            "plain": partial(script_seconds, stack, torchrun),
        }
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for turn in range(TURNS):
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                seconds[side].append(sides[side](spec))
        beside = f"plain torchrun: {statistics.median(seconds['plain']) * 1000:.2f} ms a step"
        for side in ("a job", "its runners alone"):
            ratios = [ours / plain for ours, plain in zip(seconds[side], seconds["plain"], strict=True)]
            yield Figure(f"DDP step / plain torchrun, {name}, {side}", ratios, "x", 1.05, reference=beside)


def job_seconds(stack: Stack, spec: Spec) -> float:
    """The median epoch of a job, by the step: from the times at which rank 0 logged its evaluations."""
    stack.wait_nodes()
    job_id = stack.submit(spec)
    stack.wait_state(job_id, "finished", seconds=180)
    curves = stack.get(f"/jobs/{job_id}/metrics", name="test/loss", source="rank 0", points=100_000)
    (series,) = curves["series"]
    ends = pairwise(zip(series["steps"], series["times"], strict=True))
    seconds: list[float] = [(b - a) / (last - first) for (first, a), (last, b) in ends]
    return statistics.median(seconds)


def script_seconds(stack: Stack, script: list[str], spec: Spec) -> float:
    """The median epoch of a script that writes its epochs' seconds by the step, beside the idle stack."""
    stack.wait_nodes()
    with tempfile.TemporaryDirectory() as folder:
        spec_file, out = Path(folder, "spec.json"), Path(folder, "out.json")
        spec_file.write_text(json.dumps(spec))
        process = subprocess.Popen(
            [sys.executable, *script, str(spec_file), str(out)],
            env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its ranks end with it
        )
        try:
            assert process.wait(timeout=180) == 0, f"{script[-1]} failed: run it by hand to see why."
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds: list[float] = json.loads(out.read_text())
    return statistics.median(seconds)

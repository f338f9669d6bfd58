"""A DDP job's step against the same training under plain torchrun: paired and interleaved, on the same two cores.

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
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.table import Figure
from tests.realstack import ROOT, Stack, digits

PAIRS = 5
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


def measure(stack: Stack) -> Iterator[Figure]:
    """Measure on an idle stack; each pair is one job and one torchrun, in turns which goes first."""
    for name, spec in (("cnn", CNN), ("mlp", MLP)):
        ratios: list[float] = []
        plain: list[float] = []
        for pair in range(PAIRS):
            sides = [ours_seconds, plain_seconds] if pair % 2 == 0 else [plain_seconds, ours_seconds]
            result = {side: side(stack, spec) for side in sides}
            ratios.append(result[ours_seconds] / result[plain_seconds])
            plain.append(result[plain_seconds])
        beside = f"plain torchrun: {statistics.median(plain) * 1000:.2f} ms a step"
        yield Figure(f"DDP step / plain torchrun, {name}", ratios, "x", 1.05, reference=beside)


def ours_seconds(stack: Stack, spec: Spec) -> float:
    """The median epoch of a job, by the step: from the times at which rank 0 logged its evaluations."""
    stack.wait_nodes()
    job_id = stack.submit(spec)
    stack.wait_state(job_id, "finished", seconds=180)
    curves = stack.get(f"/jobs/{job_id}/metrics", name="test/loss", source="rank 0", points=100_000)
    (series,) = curves["series"]
    ends = pairwise(zip(series["steps"], series["times"], strict=True))
    return statistics.median((b - a) / (last - first) for (first, a), (last, b) in ends)


def plain_seconds(stack: Stack, spec: Spec) -> float:
    """The median epoch of the plain script, by the step."""
    stack.wait_nodes()
    with tempfile.TemporaryDirectory() as folder:
        spec_file, out = Path(folder, "spec.json"), Path(folder, "out.json")
        spec_file.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        process = subprocess.Popen(
            [*command, str(ROOT / "benchmarks" / "plain_ddp.py"), str(spec_file), str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # torchrun's ranks end with it
        )
        try:
            assert process.wait(timeout=180) == 0, "The plain script failed: run it by hand to see why."
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return statistics.median(json.loads(out.read_text()))

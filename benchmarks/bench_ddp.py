"""A DDP job's step against the same training under plain torchrun: paired and interleaved, on the same two cores."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Figure
from tests.realstack import ROOT, Stack, digits

PAIRS = 5
EPOCHS = 40
SPEC = {
    **digits("distributed", nodes=2, epochs=EPOCHS),
    "model": {"name": "mlp", "options": {"hidden": [512, 512]}},
    "training": {"optimizer": {"name": "sgd", "lr": 0.05}, "batch_size": 64},
}


def measure(stack: Stack) -> Iterator[Figure]:
    """Measure on an idle stack; each pair is one job and one torchrun, in turns which goes first."""
    ratios: list[float] = []
    plain: list[float] = []
    for pair in range(PAIRS):
        sides = [ours_seconds, plain_seconds] if pair % 2 == 0 else [plain_seconds, ours_seconds]
        result = {side: side(stack) for side in sides}
        ratios.append(result[ours_seconds] / result[plain_seconds])
        plain.append(result[plain_seconds])
    beside = f"plain torchrun: {statistics.median(plain) * 1000:.2f} ms a step"
    yield Figure("DDP step / plain torchrun", ratios, "x", 1.05, reference=beside)


def ours_seconds(stack: Stack) -> float:
    """The median step of a job, by the times that rank 0 logged."""
    stack.wait_nodes()
    job_id = stack.submit(SPEC)
    stack.wait_state(job_id, "finished", seconds=120)
    curves = stack.get(f"/jobs/{job_id}/metrics", name="train/loss", source="rank 0", points=100_000)
    (series,) = curves["series"]
    # Times are whole milliseconds, steps may be shorter: take windows of steps within an epoch.
    times: list[float] = series["times"]
    window = 10
    spans = [(b - a) / window for a, b in zip(times, times[window:], strict=False)]
    return statistics.median(spans)


def plain_seconds(stack: Stack) -> float:
    """The median step of the plain script, in the same windows."""
    stack.wait_nodes()
    with tempfile.TemporaryDirectory() as folder:
        spec, out = Path(folder, "spec.json"), Path(folder, "out.json")
        spec.write_text(json.dumps(SPEC))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        process = subprocess.Popen(
            [*command, str(ROOT / "benchmarks" / "plain_ddp.py"), str(spec), str(out)],
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
        steps: list[float] = json.loads(out.read_text())
    window = 10
    return statistics.median(sum(steps[i : i + window]) / window for i in range(len(steps) - window + 1))

"""Whole jobs in each encoding: fewer bytes, the same model within a little, and the same bits each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.federated.clients import Job
from tests.trainer.parts import spec_of
from trainer.telemetry import MetricLog

ROUNDS = 8
SHARES = {"float32": 1.0, "bfloat16": 0.51, "int8": 0.27, "top_k": 0.22}
"""Bytes of an update, as a share of float32's; the file's header is some of it."""


def run(folder: Path, log: MetricLog, encoding: dict[str, object]) -> tuple[Job, float, int]:
    """Train digits on two clients. Returns the job, the accuracy of the weights before its last round, and the bytes of one update."""
    folder.mkdir()
    spec = spec_of(
        model="mlp",
        data={"partition": {"scheme": "dirichlet"}},
        federated={"rounds": ROUNDS, "encoding": encoding},
    )
    job = Job(spec, folder, log)
    for _ in range(ROUNDS):
        results = job.round()
    accuracy = sum(result.metrics["global/accuracy"] for result in results) / len(results)
    return job, accuracy, (folder / "update-0.safetensors").stat().st_size


@pytest.mark.parametrize("encoding", [{"name": "bfloat16"}, {"name": "int8"}, {"name": "top_k", "fraction": 0.1}])
def test_fewer_bytes_and_as_good_a_model(tmp_path: Path, log: MetricLog, encoding: dict[str, object]) -> None:
    _, plain, num_plain = run(tmp_path / "plain", log, {"name": "float32"})
    job, accuracy, num_bytes = run(tmp_path / "job", log, encoding)
    again, _, _ = run(tmp_path / "again", log, encoding)
    assert num_bytes < num_plain * SHARES[str(encoding["name"])]
    assert accuracy == pytest.approx(plain, abs=0.02)
    assert job.weights_path.read_bytes() == again.weights_path.read_bytes()

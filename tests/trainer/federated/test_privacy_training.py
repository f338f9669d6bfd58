"""A whole job with privacy: it still learns, its clip norm follows the clients, and its epsilon is one that means something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.federated.clients import Job
from tests.trainer.parts import spec_of
from trainer.federated.encoding import UpdateFile, update_shapes
from trainer.federated.privacy import epsilon_after
from trainer.telemetry import MetricLog
from trainer.weights import read_header

ROUNDS = 10


def test_it_learns_within_its_epsilon(tmp_path: Path, log: MetricLog) -> None:
    """Sixty clients with 24 digits each: without privacy 0.93 of the test rows are right, and at random 0.1."""
    clip = {"name": "adaptive", "initial_norm": 2.0, "rate": 0.5}
    spec = spec_of(
        training={"optimizer": {"name": "sgd", "lr": 0.3}},
        federated={"clients": {"num": 60}, "privacy": {"noise_multiplier": 2.0, "clip": clip}},
    )
    job = Job(spec, tmp_path, log)
    for _ in range(ROUNDS):
        results = job.round()
    # Eight runs lay between 0.79 and 0.89; the noise is another one each time.
    assert results[0].metrics["global/accuracy"] > 0.6
    privacy, clients = job.federated.privacy, job.federated.clients
    assert privacy is not None
    assert epsilon_after(privacy, clients, ROUNDS) < 10

    # The clip norm was far too long at first, and has come to what half of the clients stay below.
    header = update_shapes(read_header(job.weights_path), job.federated)
    files = [UpdateFile(path, job.federated.encoding, header) for path in sorted(tmp_path.glob("update-*"))]
    norms = [file.norm() for file in files]
    assert float(job.state.memory["clip"]["norm"][0]) == pytest.approx(float(np.median(norms)), rel=0.4)

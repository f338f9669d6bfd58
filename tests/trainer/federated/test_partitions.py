"""However the rows are dealt, together the clients have all of them: the identity that ties every partition to plain SGD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.federated.clients import Job
from tests.trainer.parts import builtin, spec_of
from trainer.data.prepare import prepare_rank
from trainer.losses import build_objective
from trainer.models import build_model, weights_of
from trainer.telemetry import MetricLog


@pytest.mark.parametrize(
    ("source", "partition", "clients"),
    [
        ("digits", {"scheme": "quantity", "alpha": 0.2}, 4),
        ("breast_cancer", {"scheme": "quantity", "alpha": 1000}, 3),
        ("breast_cancer", {"scheme": "column", "column": "mean radius"}, 3),
        ("diabetes", {"scheme": "quantity"}, 3),
        ("diabetes", {"scheme": "column", "column": "sex"}, 2),
    ],
)
def test_one_full_batch_step_is_sgd_on_the_union(
    source: str, partition: dict[str, Any], clients: int, tmp_path: Path, log: MetricLog
) -> None:
    """sum(n_i (w - lr g_i)) / n = w - lr g, for clients of any size (FedSGD)."""
    sections: dict[str, Any] = {"data": {"partition": partition}, "training": {"batch_size": 10_000}}
    spec = spec_of(model="mlp", source=source, federated={"clients": {"num": clients}}, **sections)
    job = Job(spec, tmp_path, log)
    results = job.round()

    data = prepare_rank(spec, builtin(source))
    assert sum(result.num_examples for result in results) == len(data.train_y)
    model = build_model(spec.model, builtin(source).description, spec.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = build_objective("auto", builtin(source).description.task)
    torch.autograd.backward(objective.loss(model(data.train_x), data.train_y))
    optimizer.step()
    for name, pooled in weights_of(model).items():
        np.testing.assert_allclose(job.state.weights[name], pooled, rtol=1e-5, atol=1e-6)

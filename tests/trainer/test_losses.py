from __future__ import annotations

from math import log

import pytest
import torch
from sklearn.metrics import r2_score

from trainer.losses import LOSSES, build_objective


def test_cross_entropy_of_even_odds() -> None:
    loss = LOSSES["cross_entropy"](torch.zeros(2, 4), torch.tensor([0, 3]))
    assert float(loss) == pytest.approx(log(4))


def test_hinge_by_hand() -> None:
    # Row 1: wrong class at 0.5 over the right one at 0: (1 - 0 + 0.5) / 2. Row 2: a margin of 2 costs nothing.
    outputs = torch.tensor([[0.0, 0.5], [2.0, 0.0]])
    assert float(LOSSES["hinge"](outputs, torch.tensor([0, 0]))) == pytest.approx((1.5 / 2 + 0) / 2)


def test_mean_squared_error_takes_the_column() -> None:
    # (2, 1) against (2,) must not broadcast to (2, 2).
    assert float(LOSSES["mse"](torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0]))) == pytest.approx(2.5)


def test_auto_follows_the_task() -> None:
    assert build_objective("auto", "classification").loss is LOSSES["cross_entropy"]
    assert build_objective("auto", "regression").loss is LOSSES["mse"]
    assert build_objective("hinge", "classification").loss is LOSSES["hinge"]


def test_accuracy() -> None:
    objective = build_objective("auto", "classification")
    outputs = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    metrics = objective.metrics(objective.totals(outputs, torch.tensor([0, 1, 1, 1])))
    assert metrics["accuracy"] == 0.75


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_totals_of_parts_add_up(task) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(10, 3 if task == "classification" else 1, generator=generator)
    targets = torch.arange(10) % 3 if task == "classification" else torch.randn(10, generator=generator)
    objective = build_objective("auto", task)
    whole = objective.totals(outputs, targets)
    parts = objective.totals(outputs[:4], targets[:4]) + objective.totals(outputs[4:], targets[4:])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)  # the loss itself is float32


def test_r2_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(20, 1, generator=generator), torch.randn(20, generator=generator)
    objective = build_objective("auto", "regression")
    metrics = objective.metrics(objective.totals(outputs, targets))
    assert metrics["r2"] == pytest.approx(r2_score(targets.numpy(), outputs[:, 0].numpy()))


@pytest.mark.parametrize(("output", "r2"), [(3.0, 1.0), (2.0, 0.0)])
def test_r2_of_constant_targets(output: float, r2: float) -> None:
    objective = build_objective("auto", "regression")
    assert objective.metrics(objective.totals(torch.full((4, 1), output), torch.full((4,), 3.0)))["r2"] == r2

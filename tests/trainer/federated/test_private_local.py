"""DP-SGD against plain SGD, a small case by hand, and its noise as measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainer.federated.clients import Job
from trainer.federated import private_local
from trainer.federated.private_local import PrivateTraining
from trainer.losses import build_objective
from trainer.sections.privacy import LocalPrivacy
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog

QUIET = LocalPrivacy(max_grad_norm=1e6, noise_multiplier=1e-3)
"""Cuts nothing. Its noise is switched off where a test needs exact numbers."""
BLIND = LocalPrivacy(max_grad_norm=1.0, noise_multiplier=1.0)


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_local, "gaussian", lambda shape, _std, _rng: np.zeros(shape))


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], np.random.Generator]:
    """The draws of rows that training will make; the test may draw the same."""
    monkeypatch.setattr(private_local, "noise_rng", lambda: np.random.default_rng(5))
    return lambda: np.random.default_rng(5)


def train(model: nn.Module, privacy: LocalPrivacy, x: Tensor, y: Tensor, *, task: Any = "regression", **options: Any):
    """Train by plain steps at the rate 0.5; return the number of steps and each epoch's metrics."""
    steps: list[None] = []
    epochs: list[dict[str, float]] = []
    PrivateTraining(model, privacy).train_epochs(
        build_objective("auto", task),
        torch.optim.SGD(model.parameters(), lr=0.5),
        x,
        y,
        **{"epochs": 1, "batch_size": len(y), "precision": "float32"} | options,
        before_step=lambda: steps.append(None),
        after_epoch=lambda _, seen: epochs.append(seen),
    )
    return len(steps), epochs


def test_without_noise_and_cuts_it_is_sgd_on_the_same_poisson_batches(no_noise: None, seeded) -> None:
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    model, reference = (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    num_steps, _ = train(model, QUIET, x, y, task="classification", epochs=3, batch_size=8)
    assert num_steps == 3 * 5
    rng, optimizer = seeded(), torch.optim.SGD(reference.parameters(), lr=0.5)
    for _ in range(num_steps):
        rows = torch.from_numpy(np.flatnonzero(rng.random(40) < 8 / 40))
        optimizer.zero_grad()
        # Divided by the rows expected, 8, whatever was drawn.
        (nn.functional.cross_entropy(reference(x[rows]), y[rows], reduction="sum") / 8).backward()
        optimizer.step()
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part_rows", [1, 2, 3])
def test_a_batch_in_parts_is_the_same_batch(
    part_rows: int, no_noise: None, seeded: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.randn(7, 4), torch.randn(7)
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    other.load_state_dict(model.state_dict())
    train(model, BLIND, x, y, epochs=2)
    monkeypatch.setattr(private_local, "PART_NUMBERS", 5 * part_rows)
    train(other, BLIND, x, y, epochs=2)
    torch.testing.assert_close(model.weight, other.weight, rtol=1e-6, atol=1e-7)


def test_each_row_is_cut_by_itself(no_noise: None) -> None:
    """w = 0, loss (w x - y)^2: the gradients -2 x y of (x, y) = (3, 4 / 6) and (1, 0.1) are -4 and -0.2; cut to 1: -1 and -0.2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    train(model, BLIND, torch.tensor([[3.0], [1.0]]), torch.tensor([4 / 6, 0.1]))
    # A step of 0.5 along their mean over both rows.
    assert model.weight.item() == pytest.approx(0.5 * 1.2 / 2, rel=1e-5)


@pytest.mark.parametrize("wild", [1e20, 1e30, float("inf"), float("nan")])
def test_a_row_without_a_finite_gradient_adds_at_most_the_norm(wild: float, no_noise: None) -> None:
    """Its update must be one as of any row, or it would tell that the row is there."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 0.25)
    nn.init.zeros_(model.bias)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, BLIND, torch.tensor([[wild, 1.0], [1.0, 0.0]]), torch.tensor([0.0, 1.0]))
    moved = [parameter.detach() - old for parameter, old in zip(model.parameters(), before, strict=True)]
    assert 0 < torch.cat([part.flatten() for part in moved]).norm().item() <= 0.5 + 1e-6


def test_the_norm_is_over_all_tensors(no_noise: None) -> None:
    """One row (3) with the error -1: gradients (6, 2) of weight and bias, of the length sqrt(40), cut to 1."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.ones_(model.bias)
    train(model, BLIND, torch.tensor([[3.0]]), torch.tensor([0.0]))
    assert model.weight.item() == pytest.approx(-0.5 * 6 / 40**0.5, rel=1e-5)
    assert model.bias.item() == pytest.approx(1 - 0.5 * 2 / 40**0.5, rel=1e-5)


def test_in_bfloat16_rows_are_cut_to_the_norm_and_no_further_away(no_noise: None) -> None:
    """A norm that was rounded to bfloat16's three digits would leave rows up to 0.4 % too long."""
    for _ in range(20):
        model = nn.Linear(64, 1)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train(model, BLIND, torch.randn(1, 64), torch.tensor([100.0]), precision="bfloat16")
        moved = [parameter.detach() - old for parameter, old in zip(model.parameters(), before, strict=True)]
        assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_noise_has_the_deviation_that_the_spec_says() -> None:
    """The rows have no gradient: a step moves each of 40,000 weights by -0.5 N(0, (2 * 3)^2) / 4."""
    model = nn.Linear(200, 200)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    target = torch.zeros(4, dtype=torch.long)
    privacy = LocalPrivacy(max_grad_norm=3.0, noise_multiplier=2.0)
    train(model, privacy, torch.zeros(4, 200), target, task="classification")
    assert model.weight.std().item() == pytest.approx(0.5 * 6 / 4, rel=0.03)  # 8 deviations of the estimate
    assert abs(model.weight.mean().item()) < 0.03


def test_an_empty_sample_is_a_step_of_pure_noise(seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    class NobodyDrawn:
        normal = staticmethod(lambda scale, size: np.full(size, scale))

        @staticmethod
        def random(num: int) -> np.ndarray:
            return np.ones(num)

    monkeypatch.setattr(private_local, "noise_rng", NobodyDrawn)
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    num_steps, epochs = train(model, BLIND, torch.randn(10, 2), torch.randn(10), batch_size=5, epochs=2)
    assert num_steps == 4
    assert epochs == [{}, {}]  # no row was seen
    torch.testing.assert_close(model.weight, torch.full((1, 2), -4 * 0.5 * 1.0 / 5))


def test_metrics_are_of_the_rows_that_steps_saw(no_noise: None) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    _, epochs = train(model, BLIND, torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0]))
    assert epochs == [{"loss": 5.0, "r2": pytest.approx(-4.0)}]  # by the weights before the step


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    "model",
    [
        {"name": "linear"},
        {"name": "mlp", "options": {"hidden": [8], "norm": "layer"}},
        {"name": "mlp", "options": {"hidden": [8], "norm": "group"}},
        {"name": "cnn", "options": {"channels": [4], "hidden": 8, "norm": "group"}},
        {"name": "cnn", "options": {"channels": [4], "hidden": 8, "norm": "layer"}},
        {"name": "cnn", "options": {"channels": [4], "hidden": 8}},
    ],
    ids=["linear", "mlp-layer", "mlp-group", "cnn-group", "cnn-layer", "cnn"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_model_and_optimizer_trains(model: Any, optimizer: str, precision: str, tmp_path: Path, log: MetricLog):
    spec = private_spec(
        model=model, training={"batch_size": 500, "optimizer": {"name": optimizer}, "precision": precision}
    )
    job = Job(spec, tmp_path, log)
    before = dict(job.state.weights)
    [result] = job.round()
    assert result.num_steps == 3  # 1,438 rows
    assert all(not np.array_equal(before[name], value) for name, value in job.state.weights.items())


def private_spec(**sections: Any) -> JobSpec:
    federated = {"clients": {"num": 1}, "local_privacy": {}, **sections.pop("federated", {})}
    raw = {"name": "test", "mode": "federated", "model": {"name": "linear"}, "federated": federated}
    return JobSpec.model_validate({**raw, "data": {"source": "digits", "scaling": "none"}, **sections})


def test_two_runs_of_a_spec_differ(tmp_path: Path, log: MetricLog) -> None:
    """All rows are in each step, so that only noise can differ."""
    spec = private_spec(training={"batch_size": 2000})
    updates = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        job = Job(spec, tmp_path / name, log)
        job.round()
        updates.append(job.state.weights["1.weight"])
    assert (updates[0] != updates[1]).mean() > 0.99


def test_fedprox_pulls_after_the_noise(tmp_path: Path, log: MetricLog, no_noise: None, seeded: object) -> None:
    """With rows that are cut to nearly nothing, mu alone moves the weights, and at the global weights it does not pull."""
    spec = private_spec(
        training={"batch_size": 2000},
        federated={
            "local_privacy": {"max_grad_norm": 1e-12},
            "strategy": {"name": "fedprox", "mu": 1.0},
            "local_epochs": 2,
        },
    )
    job = Job(spec, tmp_path, log)
    before = dict(job.state.weights)
    job.round()
    for name, value in job.state.weights.items():
        np.testing.assert_allclose(value, before[name], atol=1e-7)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedbn", "fusion"])
def test_strategies_that_are_allowed(strategy: str, tmp_path: Path, log: MetricLog) -> None:
    model = {"name": "mlp", "options": {"hidden": [8], "norm": "layer"}}
    spec = private_spec(model=model, training={"batch_size": 700}, federated={"strategy": {"name": strategy}})
    job = Job(spec, tmp_path, log)
    job.round()
    assert all(np.isfinite(value).all() for value in job.state.weights.values())


def test_it_learns(tmp_path: Path, log: MetricLog) -> None:
    spec = private_spec(
        training={"batch_size": 256, "optimizer": {"lr": 2.0, "name": "sgd"}}, federated={"local_epochs": 8}
    )
    [result] = Job(spec, tmp_path, log).round()
    assert result.metrics["test/accuracy"] > 0.7

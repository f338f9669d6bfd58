from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.trainer.parts import builtin, spec_of
from trainer.data.prepare import prepare_rank
from trainer.losses import build_objective
from trainer.models import build_model
from trainer.optimizers import build_optimizer
from trainer.sections.training import AdamOptimizer, AdamWOptimizer, SgdOptimizer
from trainer.training import (
    EVALUATION_ROWS,
    Tally,
    choose_device,
    evaluate,
    forward_context,
    seeded_generator,
    train_epoch,
    train_epochs,
)

MEAN_SQUARES = build_objective("mse", "regression")


def one_weight(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def run_epoch(model: nn.Module, options, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> dict[str, float]:
    optimizer = build_optimizer(options, model.parameters())
    generator = seeded_generator(0)
    return train_epoch(
        model, MEAN_SQUARES, optimizer, x, y, batch_size=batch_size, precision="float32", generator=generator
    )


def test_one_step_by_hand() -> None:
    # loss = mean((w x - y)^2): at w = 1 it is (1 + 4) / 2, its gradient mean(2 x (w x - y)) = (2 * -1 + 4 * 2) / 2 = 3.
    model = one_weight(1.0)
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 0.0])
    metrics = run_epoch(model, SgdOptimizer(name="sgd", lr=0.1), x, y, batch_size=2)
    assert model.weight.item() == pytest.approx(0.7)
    assert metrics == {"loss": 2.5, "r2": pytest.approx(1 - 5 / 2)}


@pytest.mark.parametrize(
    ("options", "after"),
    [
        # One row x = 1, y = 0 at w = 1, so that the gradient is 2 w.
        (SgdOptimizer(name="sgd", lr=0.1, weight_decay=1.0), 1 - 0.1 * (2 + 1)),
        # Adam's first step has the length lr, whatever the gradient.
        (AdamOptimizer(name="adam", lr=0.1), 0.9),
        (AdamWOptimizer(name="adamw", lr=0.1, weight_decay=0.5), 1 - 0.1 * 0.5 - 0.1),
    ],
)
def test_optimizers_by_hand(options, after: float) -> None:
    model = one_weight(1.0)
    run_epoch(model, options, torch.ones(1, 1), torch.zeros(1), batch_size=1)
    assert model.weight.item() == pytest.approx(after)


@pytest.mark.parametrize(("nesterov", "after"), [(False, [0.8, 0.64 - 0.5 * 0.2]), (True, [0.7, 0.44])])
def test_momentum_by_hand(nesterov: bool, after: list[float]) -> None:
    # v <- 0.5 v + g; w <- w - 0.1 v, or with Nesterov w - 0.1 (g + 0.5 v); g = 2 w.
    model = one_weight(1.0)
    optimizer = build_optimizer(SgdOptimizer(name="sgd", lr=0.1, momentum=0.5, nesterov=nesterov), model.parameters())
    seen: list[float] = []
    train_epochs(
        model,
        MEAN_SQUARES,
        optimizer,
        torch.ones(1, 1),
        torch.zeros(1),
        epochs=2,
        batch_size=1,
        precision="float32",
        generator=seeded_generator(0),
        after_epoch=lambda epoch, _: seen.append(model.weight.item()),
    )
    assert seen == pytest.approx(after)


def test_metrics_are_what_the_steps_saw() -> None:
    # Batches of one: the second row is judged by the weight that the first step left. Equal rows, so the order is all one.
    model = one_weight(1.0)
    metrics = run_epoch(model, SgdOptimizer(name="sgd", lr=0.25), torch.ones(2, 1), torch.zeros(2), batch_size=1)
    assert metrics["loss"] == pytest.approx((1.0**2 + 0.5**2) / 2)


def test_every_row_is_seen_once_in_a_seeded_order() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.seen: list[list[float]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x[:, 0].tolist())
            return x * self.weight

    x = torch.arange(5.0)[:, None]
    runs = []
    for _ in range(2):
        model = Recorder()
        run_epoch(model, SgdOptimizer(name="sgd"), x, torch.zeros(5), batch_size=2)
        runs.append(model.seen)
    assert [len(batch) for batch in runs[0]] == [2, 2, 1]
    assert sorted(row for batch in runs[0] for row in batch) == [0, 1, 2, 3, 4]
    assert runs[0] == runs[1]


def test_evaluation_in_parts_and_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare_rank(spec_of("distributed"), builtin())
    model = build_model(spec_of(model="mlp").model, builtin().description, seed=0)
    objective = build_objective("auto", "classification")
    whole = evaluate(model, objective, data.test_x, data.test_y, precision="float32")
    monkeypatch.setattr("trainer.training.EVALUATION_ROWS", 100)
    assert evaluate(model, objective, data.test_x, data.test_y, precision="float32") == pytest.approx(whole, rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    model = one_weight(1 + 2**-12)  # rounds to 1 in bfloat16
    with forward_context("bfloat16", torch.device("cpu")):
        assert model(torch.ones(1, 1)).dtype == torch.bfloat16
    metrics = evaluate(model, MEAN_SQUARES, torch.ones(2, 1), torch.ones(2), precision="bfloat16")
    assert metrics["loss"] == 0
    assert model.weight.dtype == torch.float32


def test_generators_follow_all_their_parts() -> None:
    draws = {torch.rand(1, generator=seeded_generator(*parts)).item() for parts in [(0, 1), (1, 0), (0, 1, 0), (0, 2)]}
    assert len(draws) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="asks for a GPU for each process, and this node has 0: set resources"):
        choose_device(1)


@pytest.mark.parametrize(
    ("model", "source", "loss", "precision", "golden"),
    [
        ("linear", "digits", "hinge", "float32", {"loss": 0.097352, "accuracy": 0.877437}),
        ("mlp", "digits", "auto", "float32", {"loss": 1.416674, "accuracy": 0.807799}),
        ("cnn", "digits", "auto", "bfloat16", {"loss": 2.200345, "accuracy": 0.459610}),
        ("mlp", "breast_cancer", "cross_entropy", "float32", {"loss": 0.361116, "accuracy": 0.885965}),
        ("linear", "diabetes", "auto", "float32", {"loss": 0.576887, "r2": 0.424845}),
    ],
)
def test_golden(model: str, source: str, loss: str, precision, golden: dict[str, float]) -> None:
    """A refactoring must give the same numbers. bfloat16 differs between processors, and is held more loosely."""
    spec = spec_of("distributed", model=model, source=source, training={"loss": loss})
    data = prepare_rank(spec, builtin(source))
    module = build_model(spec.model, builtin(source).description, spec.seed)
    objective = build_objective(loss, builtin(source).description.task)
    train_epochs(
        module,
        objective,
        build_optimizer(SgdOptimizer(name="sgd", lr=0.02), module.parameters()),
        data.train_x,
        data.train_y,
        epochs=3,
        batch_size=32,
        precision=precision,
        generator=seeded_generator(0),
        after_epoch=lambda epoch, metrics: None,
    )
    metrics = evaluate(module, objective, data.test_x, data.test_y, precision=precision)
    assert metrics == pytest.approx(golden, rel=0.05 if precision == "bfloat16" else 1e-4)


def test_a_tally_of_batches_is_the_sum_of_the_whole_and_keeps_few_outputs() -> None:
    objective = build_objective("cross_entropy", "classification")
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(10_000, 3, generator=generator)
    targets = torch.randint(3, (10_000,), generator=generator)
    tally = Tally(objective, torch.device("cpu"))
    most = 0
    for part, wanted in zip(torch.split(outputs, 7), torch.split(targets, 7), strict=True):
        tally.add(part, wanted)
        most = max(most, sum(len(kept) for _, kept in tally._waiting))
    torch.testing.assert_close(tally.totals(), objective.totals(outputs, targets))
    assert most < EVALUATION_ROWS
    no_rows = Tally(objective, torch.device("cpu")).totals()
    assert torch.equal(no_rows + tally.totals(), tally.totals())

"""Two ranks in processes of their own (gloo) against one process on the joined batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from tests.ports import free_port
from tests.trainer.parts import builtin, spec_of
from tests.trainer.ranks import run_cases
from trainer.data.files import describe_file
from trainer.data.prepare import prepare_rank
from trainer.data.source import Source
from trainer.distributed.ddp import LossLog
from trainer.losses import build_objective
from trainer.models import build_model, weights_of
from trainer.optimizers import build_optimizer
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import evaluate, seeded_generator
from trainer.weights import map_weights, read_metadata

SPECS = {
    # 455 training rows: the last step of an epoch has 7 rows, 4 for one rank and 3 for the other.
    "uneven": spec_of("distributed", source="breast_cancer", training={"batch_size": 14}, distributed={"epochs": 3}),
    # ... and here it has one row, so that rank 1 has none.
    "lonely": spec_of("distributed", source="breast_cancer", training={"batch_size": 227}, distributed={"epochs": 3}),
    "momentum": spec_of(
        "distributed",
        model="mlp",
        source="diabetes",
        training={"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}},
        distributed={"epochs": 2},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, run by one pair of processes: importing torch takes longer than training."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = []
    for name, spec in SPECS.items():
        cases.append((name, spec.model_dump_json(), [builtin(spec.data.source).model_dump_json()] * 2, free_port()))
    sources = []
    for rank in range(2):
        path = folder / f"{rank}.csv"
        path.write_text("a,y\n" + "".join(f"{row},{row % 2}\n" for row in range(20 + rank)))
        sources.append(Source(description=describe_file("t", path, "y", "classification"), path=path).model_dump_json())
    cases.append(("different", spec_of("distributed", source="t").model_dump_json(), sources, free_port()))
    start_processes(run_cases, args=(2, cases, str(folder)), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    return folder


def outcome(folder: Path, name: str, rank: int) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return said


def train_alone(
    spec: JobSpec,
) -> tuple[torch.nn.Module, list[float], list[dict[str, float]], list[dict[str, float]]]:
    """The reference: one process, plain loop, the joined batches. Losses of the steps; train and test metrics of the epochs."""
    assert spec.distributed is not None
    source = builtin(spec.data.source)
    data = prepare_rank(spec, source)
    model = build_model(spec.model, source.description, spec.seed)
    objective = build_objective(spec.training.loss, source.description.task)
    optimizer = build_optimizer(spec.training.optimizer, model.parameters())
    losses, trains, tests = [], [], []
    for epoch in range(1, spec.distributed.epochs + 1):
        order = torch.randperm(len(data.train_y), generator=seeded_generator(spec.seed, epoch))
        seen = []
        for start in range(0, len(order), 2 * spec.training.batch_size):
            rows = order[start : start + 2 * spec.training.batch_size]
            optimizer.zero_grad()
            outputs = model(data.train_x[rows])
            loss = objective.loss(outputs, data.train_y[rows])
            seen.append(outputs.detach())
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        trains.append(objective.metrics(objective.totals(torch.cat(seen), data.train_y[order])))
        tests.append(evaluate(model, objective, data.test_x, data.test_y, precision="float32"))
    return model, losses, trains, tests


@pytest.mark.parametrize("name", list(SPECS))
def test_two_ranks_equal_one_process_on_the_joined_batch(folder: Path, name: str) -> None:
    model, losses, trains, tests = train_alone(SPECS[name])
    trained = map_weights(folder / f"{name}.safetensors")
    for tensor, reference in weights_of(model).items():
        np.testing.assert_allclose(trained[tensor], reference, rtol=1e-4, atol=1e-6)
    ranks = [outcome(folder, name, rank)["curves"] for rank in range(2)]
    metric = "r2" if name == "momentum" else "accuracy"
    for part, key, alone in (("test", "loss", tests), ("test", metric, tests), ("train", metric, trains)):
        curve = ranks[0][f"{part}/{key}"]
        assert [value for _, value in curve] == pytest.approx([epoch[key] for epoch in alone], rel=1e-4)
        steps = len(losses) // len(tests)
        assert [step for step, _ in curve] == [steps * epoch for epoch in range(1, len(tests) + 1)]
    if name != "lonely":  # the first step has as many rows on either rank: the mean of their losses is the joined one
        assert (ranks[0]["train/loss"][0][1] + ranks[1]["train/loss"][0][1]) / 2 == pytest.approx(losses[0], rel=1e-5)


def test_every_step_is_logged_by_each_rank(folder: Path) -> None:
    ranks = [outcome(folder, "uneven", rank)["curves"] for rank in range(2)]
    assert set(ranks[0]) == {"train/loss", "train/accuracy", "test/loss", "test/accuracy"}
    assert set(ranks[1]) == {"train/loss"}
    for curves in ranks:
        assert [step for step, _ in curves["train/loss"]] == list(range(1, 3 * 17 + 1))


def test_a_rank_without_rows_logs_no_loss(folder: Path) -> None:
    steps = [[step for step, _ in outcome(folder, "lonely", rank)["curves"]["train/loss"]] for rank in range(2)]
    assert steps == [[1, 2, 3, 4, 5, 6], [1, 3, 5]]  # steps 2, 4 and 6 have one row


def test_the_model_carries_its_spec(folder: Path) -> None:
    assert JobSpec.model_validate_json(read_metadata(folder / "momentum.safetensors")["spec"]) == SPECS["momentum"]


def test_ranks_that_see_different_rows_are_told_so(folder: Path) -> None:
    for rank in range(2):
        error = outcome(folder, "different", rank)["error"]
        assert error.startswith("The ranks do not see the same rows of 't' (rank 0 has 20 rows, rank 1 has 21)")
    assert not (folder / "different.safetensors").exists()


def test_losses_of_a_gpu_are_read_together(log: MetricLog, heard) -> None:
    """Reading one would wait for all queued work, at each step. Nothing is lost, and the end of an epoch brings the rest."""
    losses = LossLog(log, torch.device("cuda"))  # it decides the pause only
    for step in range(1, 101):
        losses.add(step, torch.tensor(float(step)))
    assert len(losses._waiting) > 90
    losses.flush()
    log.close()
    assert heard.curves() == {"train/loss": [(step, float(step)) for step in range(1, 101)]}

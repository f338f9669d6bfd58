"""What rivals and plain loops do in an exercise is what our clients do: to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.plain_fedavg import main as plain_loop
from benchmarks.rivals.exercise import Exercise
from benchmarks.rivals.write_exercise import write_exercise, write_untrained
from trainer.data.builtin import load_digit_images
from trainer.data.files import describe_file
from trainer.data.prepare import prepare_client
from trainer.data.source import Source
from trainer.losses import build_objective
from trainer.models import build_model
from trainer.optimizers import build_optimizer
from trainer.spec import JobSpec
from trainer.training import evaluate, seeded_generator, train_epochs

SPEC = {
    "name": "an exercise",
    "mode": "federated",
    "seed": 3,
    "model": {"name": "mlp", "options": {"hidden": [16, 8]}},
    "data": {"source": "rows", "partition": {"scheme": "shards"}, "scaling": "none"},
    "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 10},
    "federated": {"rounds": 2, "local_epochs": 2, "clients": {"num": 5, "per_round": 2}},
}


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """An exercise takes one torch thread for its whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    x, y = load_digit_images()
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    return tmp_path / "rows.npz"


@pytest.fixture
def folder(tmp_path: Path, rows: Path) -> Path:
    folder = tmp_path / "exercise"
    folder.mkdir()
    write_exercise(folder, SPEC, rows)
    return folder


def test_a_client_takes_the_steps_of_ours(folder: Path, rows: Path):
    spec = JobSpec.model_validate(SPEC)
    source = Source(description=describe_file("rows", rows, "y", "classification"), path=rows)
    data = prepare_client(spec, source, 4, 5)
    model = build_model(spec.model, source.description, spec.seed)
    objective = build_objective(spec.training.loss, source.description.task)
    train_epochs(
        model,
        objective,
        build_optimizer(spec.training.optimizer, model.parameters()),
        data.train_x,
        data.train_y,
        epochs=2,
        batch_size=10,
        precision="float32",
        generator=seeded_generator(spec.seed, 1, 4),
        after_epoch=lambda epoch, metrics: None,
    )
    exercise = Exercise(folder)
    trained, num_examples = exercise.train(exercise.initial_weights(), 1, 4)
    assert num_examples == exercise.count_rows(4) == len(data.train_y)
    assert trained.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(trained[name], tensor), name
    ours = evaluate(model, objective, data.test_x, data.test_y, precision="float32")
    assert exercise.accuracy(trained) == pytest.approx(ours["accuracy"], abs=1e-6)


def test_the_plain_loop_averages_by_examples(folder: Path):
    plain_loop(str(folder))
    told = json.loads((folder / "result.json").read_text())
    assert all(before < after for before, after in pairwise(told["times"]))
    exercise = Exercise(folder)
    weights = exercise.initial_weights()
    for number in (1, 2):
        updates = [exercise.train(weights, number, client) for client in exercise.draws[number - 1]]
        whole = sum(count for _, count in updates)
        weights = {
            name: torch.stack([state[name] * (count / whole) for state, count in updates]).sum(0) for name in weights
        }
        assert told["accuracies"][number - 1] == pytest.approx(exercise.accuracy(weights), abs=0.01)


def test_without_training_every_weight_changes(tmp_path: Path):
    write_untrained(tmp_path, shapes={"w": (3, 2)}, rounds=1, clients=2)
    exercise = Exercise(tmp_path)
    before = exercise.initial_weights()
    after, _ = exercise.train(before, 1, 1)
    assert torch.equal(after["w"], before["w"] + 0.002)
    assert exercise.accuracy(after) is None

"""Clients in a stack end where they end alone, within float tolerance: every model and optimizer, and clients of any sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.parts import builtin
from trainer.data.prepare import Dataset, prepare_clients
from trainer.federated.kept import ClientFiles
from trainer.federated.local_round import LocalTrainer
from trainer.federated.result import ClientResult
from trainer.models import weights_of
from trainer.simulation import side_by_side
from trainer.simulation.choose import choose_executor, why_not_stacked
from trainer.simulation.executor import OneByOne
from trainer.simulation.rows import VirtualRows
from trainer.simulation.side_by_side import ACTIVATION_COPIES, COPIES, Footprint, SideBySide
from trainer.spec import JobSpec
from trainer.weights import Weights, map_weights, write_weights

SIZES = [23, 1, 10, 31, 7, 20]
"""One step, several, a last batch of one row, and no padding at all."""


def spec_of(model: dict[str, Any], optimizer: dict[str, Any] | None = None, **federated: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "test",
            "mode": "federated",
            "model": model,
            "data": {"source": "digits"},
            "training": {"batch_size": 10, "optimizer": optimizer or {"name": "sgd", "lr": 0.1}},
            "federated": {"local_epochs": 2, "clients": {"simulate": len(SIZES)}, **federated},
        }
    )


def rows_of(spec: JobSpec) -> VirtualRows:
    dataset, _ = prepare_clients(spec, builtin(), 1)
    return VirtualRows(Dataset(*dataset), torch.arange(sum(SIZES)), torch.tensor(SIZES))


def train_both(
    spec: JobSpec, folder: Path, rounds: int = 1
) -> list[tuple[Weights, Weights, ClientResult, ClientResult]]:
    """Train all clients either way; return each client's two updates and what it said, of the last round."""
    rows, trainer = rows_of(spec), LocalTrainer(spec, builtin())
    weights = {name: value.copy() for name, value in weights_of(trainer.model).items()}
    said: dict[str, dict[int, ClientResult]] = {"one": {}, "stack": {}}
    executors: dict[str, OneByOne | SideBySide] = {
        "one": OneByOne(trainer, rows),
        "stack": SideBySide(spec, trainer, rows, write_weights),
    }
    for name, executor in executors.items():
        (folder / name).mkdir()
        paths = {client: folder / name / f"{client}.safetensors" for client in range(len(SIZES))}
        for number in range(1, rounds + 1):
            files = {client: (ClientFiles(folder / name / "kept", client), number - 1) for client in paths}
            executor.train(number, weights, {}, paths, files, said[name].__setitem__)
    return [
        (
            map_weights(folder / "one" / f"{client}.safetensors"),
            map_weights(folder / "stack" / f"{client}.safetensors"),
            said["one"][client],
            said["stack"][client],
        )
        for client in range(len(SIZES))
    ]


MODELS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "mlp": {"name": "mlp", "options": {"hidden": [16, 8]}},
    "layer": {"name": "mlp", "options": {"hidden": [16], "norm": "layer"}},
    "cnn": {"name": "cnn", "options": {"channels": [4], "hidden": 8}},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "nesterov": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "lr": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [(model, "sgd") for model in MODELS]
    + [("mlp", "nesterov"), ("mlp", "adam"), ("linear", "adamw"), ("cnn", "nesterov")],
)
def test_ragged_clients_end_where_they_end_alone(model: str, optimizer: str, tmp_path: Path) -> None:
    for alone, stacked, said, said_stacked in train_both(spec_of(MODELS[model], OPTIMIZERS[optimizer]), tmp_path):
        assert alone.keys() == stacked.keys()
        for name in alone:
            # Rounding grows with every step, most where Adam divides by the root of a tiny square.
            np.testing.assert_allclose(stacked[name], alone[name], rtol=1e-3, atol=1e-4)
        assert (said.num_examples, said.num_steps) == (said_stacked.num_examples, said_stacked.num_steps)
        assert said_stacked.metrics == pytest.approx(said.metrics, rel=1e-3)


@pytest.mark.parametrize(
    "federated",
    [
        {"strategy": {"name": "fedbn"}},
        {"encoding": {"name": "top_k", "fraction": 1.0}},
        {"strategy": {"name": "fednova"}, "encoding": {"name": "bfloat16"}},
    ],
    ids=["fedbn", "top_k", "fednova in bfloat16"],
)
def test_what_clients_keep_and_send(federated: dict[str, Any], tmp_path: Path) -> None:
    for alone, stacked, _, _ in train_both(spec_of(MODELS["layer"], **federated), tmp_path, rounds=2):
        assert alone.keys() == stacked.keys()
        for name in alone:
            if alone[name].dtype == np.float32:
                np.testing.assert_allclose(stacked[name], alone[name], rtol=1e-3, atol=2e-5)


def test_a_stack_that_is_too_large_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_both(spec_of(MODELS["mlp"]), tmp_path)
    monkeypatch.setattr(side_by_side, "STACK_BYTES", 1)
    (tmp_path / "cut").mkdir()
    for (_, stacked, _, _), (_, cut, _, _) in zip(
        whole, train_both(spec_of(MODELS["mlp"]), tmp_path / "cut"), strict=True
    ):
        for name in stacked:
            np.testing.assert_allclose(cut[name], stacked[name], rtol=1e-4, atol=1e-6)


def test_a_footprint_counts_weights_rows_and_the_widest_step() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU())
    footprint = Footprint(model, torch.zeros(1, 4), batch_size=10)
    weights, row, outputs = COPIES * 4 * (4 * 3 + 3), 4 * 4, 4 * (4 + 3 + 3)
    step = row + ACTIVATION_COPIES * outputs
    assert footprint.of(num_rows=25, longest=30) == weights + 25 * row + 10 * step
    assert footprint.of(num_rows=2, longest=30) == weights + 2 * row + 10 * step
    assert footprint.of(num_rows=2, longest=3) == weights + 2 * row + 3 * step
    assert model.training


def test_stacks_of_many_rows_are_cut_although_the_weights_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    build = side_by_side.Stack

    def built(spec: JobSpec, model: Any, objective: Any, members: Any, starts: Any) -> side_by_side.Stack:
        sizes.append(len(members))
        return build(spec, model, objective, members, starts)

    monkeypatch.setattr(side_by_side, "Stack", built)
    train_both(spec_of(MODELS["cnn"]), tmp_path)
    assert sizes == [len(SIZES)]
    sizes.clear()
    model = LocalTrainer(spec_of(MODELS["cnn"]), builtin()).model
    # Room for the weights of all, but not for what their steps leave behind.
    room = len(SIZES) * COPIES * sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr(side_by_side, "STACK_BYTES", room)
    (tmp_path / "cut").mkdir()
    train_both(spec_of(MODELS["cnn"]), tmp_path / "cut")
    assert len(sizes) > 1
    assert sum(sizes) == len(SIZES)


def test_the_random_state_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train_both(spec_of(MODELS["mlp"]), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def many(model: dict[str, Any], drawn: int, **sections: Any) -> JobSpec:
    spec = spec_of(model, clients={"simulate": 100, "per_round": drawn, "processes": 2}, **sections)
    return spec.model_copy(update={"federated": spec.federated})


@pytest.mark.parametrize(
    ("device", "model", "drawn", "num_parameters", "chosen"),
    [
        (CPU, "linear", 39, 7850, "one_by_one"),
        (CPU, "linear", 40, 7850, "side_by_side"),
        (CPU, "mlp", 40, 50_001, "one_by_one"),
        (CPU, "cnn", 40, 50_001, "side_by_side"),
        (GPU, "mlp", 1, 199_210, "side_by_side"),
    ],
)
def test_the_rule(device: torch.device, model: str, drawn: int, num_parameters: int, chosen: str) -> None:
    assert choose_executor(many(MODELS[model], drawn), device, num_parameters)[0] == chosen


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"strategy": {"name": "scaffold"}}, "scaffold"),
        ({"strategy": {"name": "fedprox"}}, "fedprox"),
        ({"strategy": {"name": "qfedavg"}}, "qfedavg"),
    ],
)
def test_what_cannot_be_stacked_says_why(changes: dict[str, Any], word: str) -> None:
    spec = many(MODELS["mlp"], 100, **changes)
    assert choose_executor(spec, GPU, 1) == ("one_by_one", why_not_stacked(spec))
    assert word in why_not_stacked(spec)

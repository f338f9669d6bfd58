"""A job's spec as an exercise for rivals and plain loops: the same initial weights, and the same rows with each client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.files import describe_file
from trainer.data.prepare import prepare_clients
from trainer.data.source import Source
from trainer.federated.draw import draw_clients
from trainer.models import build_model, weights_of
from trainer.spec import JobSpec

Spec = dict[str, Any]
Arrays = dict[str, Any]


def write_exercise(folder: Path, raw: Spec, rows: Path) -> None:
    """Write the exercise of a federated mlp into `folder`. rows: the NPZ file (x, y) that the spec's source stands for."""
    spec = JobSpec.model_validate(raw)
    assert spec.federated is not None
    clients = spec.federated.clients.total
    source = Source(description=describe_file(spec.data.source, rows, "y", "classification"), path=rows)
    data, parts = prepare_clients(spec, source, clients)
    np.savez(
        folder / "rows.npz",
        x=data.train_x.numpy(),
        y=data.train_y.numpy(),
        test_x=data.test_x.numpy(),
        test_y=data.test_y.numpy(),
        positions=np.concatenate(parts),
        bounds=np.cumsum([0, *(len(part) for part in parts)]),
    )
    weights: Arrays = dict(weights_of(build_model(spec.model, source.description, spec.seed)))
    np.savez(folder / "weights.npz", **weights)
    write_options(
        folder,
        rounds=spec.federated.rounds,
        clients=clients,
        per_round=spec.federated.clients.num_drawn,
        local_epochs=spec.federated.local_epochs,
        batch_size=spec.training.batch_size,
        lr=spec.training.optimizer.lr,
        seed=spec.seed,
        draws=[draw_clients(spec, number + 1) for number in range(spec.federated.rounds)],
    )


def write_untrained(folder: Path, *, shapes: dict[str, tuple[int, ...]], rounds: int, clients: int) -> None:
    """Write an exercise in which each client returns all of the weights changed a little, and nothing is trained."""
    rng = np.random.default_rng(0)
    weights: Arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    np.savez(folder / "weights.npz", **weights)
    write_options(
        folder,
        rounds=rounds,
        clients=clients,
        per_round=clients,
        local_epochs=0,
        batch_size=1,
        lr=0.0,
        seed=0,
        draws=[list(range(clients))] * rounds,
    )


def write_options(folder: Path, **options: object) -> None:
    (folder / "exercise.json").write_text(json.dumps(options))

"""What a client keeps from round to round: the newest earlier file is read, and a repeated round gives the same bits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.federated.clients import Job
from tests.trainer.parts import builtin
from trainer.federated.client import FederatedClient
from trainer.federated.encoding import UpdateFile
from trainer.federated.kept import ClientFiles, newest_file, write_own_model
from trainer.sections.federated import Float32Encoding
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.weights import Weights, map_weights, read_metadata, write_weights

FLOAT32 = Float32Encoding(name="float32")
NORMS = {"name": "mlp", "options": {"hidden": [16], "norm": "batch"}}
KEEPERS: dict[str, dict[str, Any]] = {
    "scaffold": {"federated": {"strategy": {"name": "scaffold"}}},
    "fedbn": {"federated": {"strategy": {"name": "fedbn"}}},
    "top_k": {"federated": {"encoding": {"name": "top_k"}}},
    "fedbn and top_k": {"federated": {"strategy": {"name": "fedbn"}, "encoding": {"name": "top_k"}}},
}
"""Specs whose clients keep something."""


def keeper(name: str) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "t",
            "mode": "federated",
            "data": {"source": "digits"},
            "model": NORMS if "fedbn" in name else {"name": "mlp"},
            **KEEPERS[name],
        }
    )


def one(value: float) -> Weights:
    return {"a": np.array([value], np.float32)}


def test_the_newest_earlier_round_is_read(tmp_path: Path) -> None:
    files = ClientFiles(tmp_path / "job-1", 3)
    assert files.before(1) == {}
    files.write(2, one(2))
    files.write(7, one(7))
    assert files.before(2) == {}
    assert files.before(3)["a"] == files.before(7)["a"] == 2
    assert files.before(8)["a"] == 7
    assert ClientFiles(tmp_path / "job-1", 30).before(8) == {}  # another client


def test_only_what_a_repeated_round_needs_stays(tmp_path: Path) -> None:
    files = ClientFiles(tmp_path, 0)
    for number in (1, 2, 10, 4):  # 10 is of a past that the server has forgotten
        files.write(number, one(number))
    ClientFiles(tmp_path, 1).write(1, one(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "client-0-round-2.safetensors",
        "client-0-round-4.safetensors",
        "client-1-round-1.safetensors",
    ]


def test_a_forgotten_round_has_not_happened(tmp_path: Path) -> None:
    files = ClientFiles(tmp_path, 0)
    files.write(1, one(1))
    files.write(2, one(2))
    files.forget(2)
    files.forget(5)
    assert files.before(3)["a"] == 1


def test_a_damaged_file_is_said_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ClientFiles(tmp_path, 0)
    files.write(1, one(1))
    files.write(2, one(2))
    (tmp_path / "client-0-round-2.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert files.before(3)["a"] == 1
    assert "What the client kept of round 2 is lost" in caplog.text


def test_a_client_with_its_own_layers_has_a_model_of_its_own(tmp_path: Path) -> None:
    model, target = tmp_path / "model.safetensors", tmp_path / "own.safetensors"
    write_weights(model, {"0.weight": np.ones(2, np.float32), "norm1.weight": np.ones(2, np.float32)}, {"spec": "{}"})
    files = ClientFiles(tmp_path / "kept", 0)
    assert newest_file(tmp_path / "kept") is None
    files.write(1, {"variate.0.weight": np.zeros(2, np.float32)})
    kept = newest_file(tmp_path / "kept")
    assert kept is not None
    write_own_model(model, kept, target)
    assert not target.exists()
    files.write(2, {"own.norm1.weight": np.full(2, 5, np.float32)})
    kept = newest_file(tmp_path / "kept")
    assert kept is not None
    write_own_model(model, kept, target)
    assert map_weights(target)["norm1.weight"].tolist() == [5, 5]
    assert map_weights(target)["0.weight"].tolist() == [1, 1]
    assert read_metadata(target) == {"spec": "{}"}


@pytest.mark.parametrize("name", KEEPERS)
def test_a_repeated_round_gives_the_same_bits(name: str, tmp_path: Path, log: MetricLog) -> None:
    """In the same runner or in a new one, and also when the first try had written all its files."""
    job = Job(keeper(name), tmp_path, log)
    job.round()
    first = tmp_path / "update-again.safetensors"
    job.train(job.clients[0], 2, first)
    update, kept = first.read_bytes(), (job.kept / "client-0-round-2.safetensors").read_bytes()
    for client in (job.clients[0], job.client(0, log)):
        job.train(client, 2, first)
        assert first.read_bytes() == update
        assert (job.kept / "client-0-round-2.safetensors").read_bytes() == kept


@pytest.mark.parametrize("name", KEEPERS)
def test_what_was_kept_counts(name: str, tmp_path: Path, log: MetricLog) -> None:
    job = Job(keeper(name), tmp_path, log)
    job.round()
    update = tmp_path / "update.safetensors"
    job.train(job.clients[0], 2, update)
    remembering = update.read_bytes()
    for file in job.kept.iterdir():
        file.unlink()
    job.train(job.clients[0], 2, update)
    assert update.read_bytes() != remembering


def test_what_did_not_travel_is_added_to_the_next_update(tmp_path: Path, log: MetricLog) -> None:
    """Sent and kept together are the whole change (Stich et al. 2018): nothing is lost, only late."""
    spec = keeper("top_k")
    assert spec.federated is not None
    job = Job(spec, tmp_path, log)
    job.round()
    kept = dict(map_weights(job.kept / "client-0-round-1.safetensors"))
    path = tmp_path / "update.safetensors"
    job.train(job.clients[0], 2, path)
    plain = spec.model_copy(update={"federated": spec.federated.model_copy(update={"encoding": FLOAT32})})
    whole = tmp_path / "whole.safetensors"
    FederatedClient(plain, builtin(), 0, 2, log).train_round(2, job.weights_path, whole)
    deltas = map_weights(whole)
    after = map_weights(job.kept / "client-0-round-2.safetensors")
    sent = UpdateFile(path, spec.federated.encoding, {name: delta.shape for name, delta in deltas.items()})
    for name, delta in deltas.items():
        travelled = sent.block(name, 0, delta.size).reshape(delta.shape)
        assert 0 < np.count_nonzero(travelled) <= np.ceil(0.05 * delta.size)
        np.testing.assert_array_equal(travelled + after[f"residual.{name}"], delta + kept[f"residual.{name}"])


def test_a_client_that_keeps_needs_somewhere_to(tmp_path: Path, log: MetricLog) -> None:
    job = Job(keeper("scaffold"), tmp_path, log)
    client = FederatedClient(job.spec, builtin(), 0, 2, log)
    with pytest.raises(ValueError, match="keeps something from round to round, and has nowhere to"):
        job.train(client, 1, tmp_path / "update.safetensors")
    assert not (tmp_path / "update.safetensors").exists()

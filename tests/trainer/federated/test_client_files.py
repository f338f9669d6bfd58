"""What a client keeps from round to round: it goes on from its counted round, and a repeated round gives the same bits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.federated.clients import Job
from tests.trainer.parts import builtin, spec_of
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


def test_exactly_the_counted_round_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ClientFiles(tmp_path / "job-1", 3)
    assert files.read(0) == {}
    files.write(2, one(2), counted_round=0)
    files.write(7, one(7), counted_round=2)
    assert files.read(0) == {}
    assert files.read(2)["a"] == 2
    assert files.read(7)["a"] == 7
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert files.read(5) == {}, "the nearest will not do"
        assert ClientFiles(tmp_path / "job-1", 30).read(7) == {}, "another client's will not do"
    lost = "What the client kept of round {} is lost, and it starts as new: it is not on this node."
    assert [record.getMessage() for record in caplog.records] == [lost.format(5), lost.format(7)]


def test_the_counted_and_the_present_round_stay(tmp_path: Path) -> None:
    files = ClientFiles(tmp_path, 0)
    for number in (1, 2, 10, 4):  # 10 is of a past that the server has forgotten; 4 closed without the client
        files.write(number, one(number), counted_round=min(number - 1, 2))
    ClientFiles(tmp_path, 1).write(1, one(1), counted_round=0)
    files.write(5, one(5), counted_round=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "client-0-round-2.safetensors",
        "client-0-round-5.safetensors",
        "client-1-round-1.safetensors",
    ]


def test_a_forgotten_round_has_not_happened(tmp_path: Path) -> None:
    files = ClientFiles(tmp_path, 0)
    files.write(1, one(1), counted_round=0)
    files.write(2, one(2), counted_round=1)
    files.forget(2)
    files.forget(5)
    assert [path.name for path in tmp_path.iterdir()] == ["client-0-round-1.safetensors"]


def test_a_damaged_file_is_said_and_none_takes_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ClientFiles(tmp_path, 0)
    files.write(1, one(1), counted_round=0)
    files.write(2, one(2), counted_round=1)
    (tmp_path / "client-0-round-2.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert files.read(2) == {}
    assert "What the client kept of round 2 is lost, and it starts as new: " in caplog.text


def test_a_client_with_its_own_layers_has_a_model_of_its_own(tmp_path: Path) -> None:
    model, target = tmp_path / "model.safetensors", tmp_path / "own.safetensors"
    write_weights(model, {"0.weight": np.ones(2, np.float32), "norm1.weight": np.ones(2, np.float32)}, {"spec": "{}"})
    files = ClientFiles(tmp_path / "kept", 0)
    assert newest_file(tmp_path / "kept") is None
    files.write(1, {"variate.0.weight": np.zeros(2, np.float32)}, counted_round=0)
    kept = newest_file(tmp_path / "kept")
    assert kept is not None
    write_own_model(model, kept, target)
    assert not target.exists()
    files.write(2, {"own.norm1.weight": np.full(2, 5, np.float32)}, counted_round=1)
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


@pytest.mark.parametrize("name", KEEPERS)
def test_a_round_that_closed_without_the_client_has_not_happened(name: str, tmp_path: Path, log: MetricLog) -> None:
    """Nothing that it left is in what the next round gives."""
    job = Job(keeper(name), tmp_path, log)
    job.round()
    job.round(late=[0])
    names = [file.name for file in sorted(job.kept.glob("client-0-*"))]
    assert names == ["client-0-round-1.safetensors", "client-0-round-2.safetensors"]
    update = tmp_path / "update.safetensors"
    job.train(job.clients[0], 3, update)
    with_it = update.read_bytes()
    assert not (job.kept / "client-0-round-2.safetensors").exists()
    job.train(job.clients[0], 3, update)
    assert update.read_bytes() == with_it


def test_the_variate_of_the_server_stays_the_mean_of_the_clients(tmp_path: Path, log: MetricLog) -> None:
    """SCAFFOLD's invariant, c = mean(c_i) over what the server has counted, through rounds that close without a client."""
    job = Job(keeper("scaffold"), tmp_path, log)
    for late in ((), [0], [0], (), [1], ()):
        job.round(late)
        kept = [map_weights(job.kept / f"client-{k}-round-{r}.safetensors") for k, r in enumerate(job.counted) if r]
        for name, variate in job.state.memory["variate"].items():
            mean = sum(own[f"variate.{name}"] for own in kept) / len(job.clients)
            np.testing.assert_allclose(variate, mean, atol=1e-6)


def test_a_client_that_keeps_nothing_misses_nothing(
    tmp_path: Path, log: MetricLog, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(spec_of(), tmp_path, log)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            job.round()
    assert not caplog.records
    assert not job.kept.exists()


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
        client.train_round(1, job.weights_path, tmp_path / "update.safetensors")
    assert not (tmp_path / "update.safetensors").exists()

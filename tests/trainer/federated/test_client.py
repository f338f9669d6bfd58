"""The client's side of a round, and the identities that tie it to plain training."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.federated.clients import Job
from tests.trainer.parts import builtin, spec_of
from trainer.data.prepare import prepare_client, prepare_rank
from trainer.data.source import SourceError
from trainer.federated.check import UpdateRefused, check_update
from trainer.federated.client import FederatedClient
from trainer.federated.initial import initial_weights
from trainer.federated.result import ClientResult
from trainer.losses import build_objective
from trainer.models import build_model, load_weights, weights_of
from trainer.protocol import UpdateOffer
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import evaluate
from trainer.weights import Weights, map_weights, read_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def run_rounds(spec: JobSpec, folder: Path, log: MetricLog, rounds: int) -> tuple[Weights, list[list[ClientResult]]]:
    """Run whole rounds with all clients in this process. Returns the last weights and each round's results."""
    job = Job(spec, folder, log)
    history = [job.round() for _ in range(rounds)]
    return job.state.weights, history


def test_one_client_alone_is_plain_training(folder: Path, log: MetricLog) -> None:
    """FedAvg over one client gives that client's own weights."""
    spec = spec_of(model="mlp", federated={"clients": {"num": 1}})
    weights, _ = run_rounds(spec, folder, log, rounds=1)
    client = FederatedClient(spec, builtin(), 0, 1, log)
    initial = folder / "initial.safetensors"
    initial.write_bytes(initial_weights(spec, builtin().description))
    client.train_round(1, initial, folder / "alone.safetensors")
    for name, local in weights_of(client._trainer.model).items():
        np.testing.assert_allclose(weights[name], local, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheme", ["iid", "shards", "dirichlet"])
def test_one_full_batch_step_is_sgd_on_the_union(scheme: str, folder: Path, log: MetricLog) -> None:
    """sum(n_i (w - lr g_i)) / n = w - lr g: with one step a round, any split of the rows gives the same (FedSGD)."""
    spec = spec_of(
        model="mlp",
        data={"partition": {"scheme": scheme}},
        training={"batch_size": 10_000},
        federated={"clients": {"num": 3}},
    )
    averaged, results = run_rounds(spec, folder, log, rounds=1)

    data = prepare_rank(spec_of("distributed"), builtin())
    assert sum(result.num_examples for result in results[0]) == len(data.train_y)
    model = build_model(spec.model, builtin().description, spec.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.autograd.backward(torch.nn.functional.cross_entropy(model(data.train_x), data.train_y))
    optimizer.step()
    for name, pooled in weights_of(model).items():
        np.testing.assert_allclose(averaged[name], pooled, rtol=1e-5, atol=1e-6)


def test_metrics_and_steps(folder: Path, log: MetricLog, heard) -> None:
    spec = spec_of(federated={"local_epochs": 3, "clients": {"num": 1}})
    started = time.perf_counter()
    _, results = run_rounds(spec, folder, log, rounds=2)
    elapsed = time.perf_counter() - started
    log.close()
    curves = heard.curves()
    assert set(curves) == {"train/loss", "train/accuracy", "test/loss", "test/accuracy"}
    assert [step for step, _ in curves["test/loss"]] == [1, 2, 3, 4, 5, 6]
    first, second = results[0][0], results[1][0]
    assert set(second.metrics) == set(curves) | {"global/loss", "global/accuracy"}
    assert second.metrics["train/loss"] == curves["train/loss"][-1][1]
    assert second.num_examples == 1438
    assert 0 < first.seconds_training + second.seconds_training < elapsed
    # One client's trained weights are the next round's global ones.
    assert second.metrics["global/loss"] == pytest.approx(first.metrics["test/loss"], rel=1e-5)


def test_regression_speaks_of_r2(folder: Path, log: MetricLog) -> None:
    spec = spec_of(source="diabetes", training={"optimizer": {"name": "sgd", "lr": 0.01}})
    _, results = run_rounds(spec, folder, log, rounds=1)
    assert set(results[0][0].metrics) == {
        f"{part}/{name}" for part in ("global", "train", "test") for name in ("loss", "r2")
    }


def test_the_incoming_weights_are_judged_before_training(folder: Path, log: MetricLog) -> None:
    spec = spec_of(model="mlp")
    _, results = run_rounds(spec, folder, log, rounds=1)
    data = prepare_client(spec, builtin(), 0, 2)
    model = build_model(spec.model, builtin().description, spec.seed)
    objective = build_objective("auto", "classification")
    expected = evaluate(model, objective, data.test_x, data.test_y, precision="float32")
    assert results[0][0].metrics["global/loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_a_round_depends_on_its_inputs_alone(folder: Path, log: MetricLog) -> None:
    """Seed, round and client: a round that is asked twice, or by a new runner, gives the same bytes."""
    spec = spec_of(model="mlp", training={"optimizer": {"name": "adam"}})
    weights = folder / "weights.safetensors"
    weights.write_bytes(initial_weights(spec, builtin().description))

    def update(client: FederatedClient, number: int) -> bytes:
        client.train_round(number, weights, folder / "update.safetensors")
        return (folder / "update.safetensors").read_bytes()

    client = FederatedClient(spec, builtin(), 0, 2, log)
    first, second = update(client, 1), update(client, 2)
    assert first != second
    assert update(client, 1) == first
    assert update(FederatedClient(spec, builtin(), 0, 2, log), 2) == second
    assert update(FederatedClient(spec, builtin(), 1, 2, log), 1) != first


def test_the_update_is_local_minus_global(folder: Path, log: MetricLog) -> None:
    spec = spec_of()
    weights = folder / "weights.safetensors"
    weights.write_bytes(initial_weights(spec, builtin().description))
    client = FederatedClient(spec, builtin(), 0, 2, log)
    client.train_round(1, weights, folder / "update.safetensors")
    before, delta = map_weights(weights), map_weights(folder / "update.safetensors")
    for name, local in weights_of(client._trainer.model).items():
        assert delta[name].dtype == np.float32
        np.testing.assert_array_equal(delta[name], local - before[name])


def test_a_client_that_diverges_says_so(folder: Path, log: MetricLog) -> None:
    """Its NaN metrics survive the way to the server, and its update is refused at the door."""
    spec = spec_of(source="diabetes", training={"optimizer": {"name": "sgd", "lr": 100}}, federated={"local_epochs": 9})
    weights, update = folder / "weights", folder / "update"
    weights.write_bytes(initial_weights(spec, builtin("diabetes").description))
    result = FederatedClient(spec, builtin("diabetes"), 0, 2, log).train_round(1, weights, update)
    assert math.isnan(result.metrics["test/loss"])
    offer = UpdateOffer(digest="0" * 64, num_examples=result.num_examples, metrics=result.metrics)
    for model, message in ((ClientResult, result), (UpdateOffer, offer)):
        arrived = model.model_validate_json(message.model_dump_json())
        assert math.isnan(arrived.metrics["test/loss"])
    with pytest.raises(UpdateRefused, match="holds NaN or infinite values"):
        check_update(update, read_header(weights), spec.federated)


def test_weights_of_another_model(folder: Path, log: MetricLog) -> None:
    (folder / "weights").write_bytes(initial_weights(spec_of(model="mlp"), builtin().description))
    client = FederatedClient(spec_of(model="linear"), builtin(), 0, 2, log)
    with pytest.raises(ValueError, match="do not fit the model's"):
        client.train_round(1, folder / "weights", folder / "update")
    assert not (folder / "update").exists()


def test_initial_weights_are_those_of_the_seed() -> None:
    spec = spec_of(model="cnn")
    assert initial_weights(spec, builtin().description) == initial_weights(spec, builtin().description)
    model = build_model(spec.model, builtin().description, seed=9)
    load_weights(model, weights_of(build_model(spec.model, builtin().description, spec.seed)))
    other = initial_weights(spec.model_copy(update={"seed": 9}), builtin().description)
    assert other != initial_weights(spec, builtin().description)


def test_golden(folder: Path, log: MetricLog) -> None:
    """A refactoring must give the same numbers."""
    _, results = run_rounds(spec_of(model="mlp"), folder, log, rounds=5)
    metrics = results[-1][0].metrics
    golden = {"global/loss": 0.297826, "global/accuracy": 0.927577, "train/loss": 0.273286, "test/loss": 0.285562}
    assert {name: metrics[name] for name in golden} == pytest.approx(golden, rel=1e-3)


def test_every_step_and_every_evaluation_is_progress(folder: Path, log: MetricLog) -> None:
    spec = spec_of(federated={"local_epochs": 2})
    (folder / "weights").write_bytes(initial_weights(spec, builtin().description))
    calls: list[None] = []
    client = FederatedClient(spec, builtin(), 0, 2, log, on_progress=lambda: calls.append(None))
    num_steps = client.train_round(1, folder / "weights", folder / "update").num_steps
    assert num_steps == 2 * math.ceil(719 / 32)
    assert len(calls) == num_steps + 3  # the incoming weights, and those after each epoch


def test_a_round_without_evaluation_trains_alike(folder: Path, log: MetricLog) -> None:
    spec = spec_of(model="mlp")
    (folder / "weights").write_bytes(initial_weights(spec, builtin().description))
    client = FederatedClient(spec, builtin(), 0, 2, log)
    seeing = client.train_round(1, folder / "weights", folder / "seeing")
    blind = client.train_round(1, folder / "weights", folder / "blind", evaluate=False)
    assert set(blind.metrics) == {"train/loss", "train/accuracy"}
    assert blind.metrics.items() < seeing.metrics.items()
    assert (folder / "blind").read_bytes() == (folder / "seeing").read_bytes()


def test_labels_are_counted_where_they_may_be_shared(log: MetricLog, folder: Path) -> None:
    spec = spec_of(data={"partition": {"scheme": "shards"}})
    (folder / "weights").write_bytes(initial_weights(spec, builtin().description))
    told = []
    for shares in (True, False):
        client = FederatedClient(spec, builtin(), 0, 2, log, share_label_counts=shares)
        told.append(client.train_round(1, folder / "weights", folder / "update"))
    assert told[0].label_counts is not None
    assert sum(told[0].label_counts.values()) == told[0].num_examples
    assert told[1].label_counts is None


def test_a_client_that_keeps_its_figures_trains_alike_and_says_none(
    folder: Path, log: MetricLog, heard, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(model="mlp", federated={"strategy": {"name": "qfedavg"}})
    (folder / "weights").write_bytes(initial_weights(spec, builtin().description))
    FederatedClient(spec, builtin(), 0, 2, log).train_round(1, folder / "weights", folder / "open")
    log.flush()
    heard.packs.clear()
    caplog.clear()
    with caplog.at_level("INFO"):
        client = FederatedClient(spec, builtin(), 0, 2, log, share_label_counts=True, share_metrics=False)
        kept = client.train_round(1, folder / "weights", folder / "kept")
    log.flush()
    assert (kept.metrics, kept.loss_before, kept.label_counts) == ({}, None, None)
    assert heard.packs == []
    [line] = [record.message for record in caplog.records if record.message.startswith("Round 1: 719 rows in ")]
    assert line.endswith(" s; the node's owner keeps the figures")
    assert (folder / "kept").read_bytes() == (folder / "open").read_bytes()


def test_a_single_row_cannot_be_batch_normalised(log: MetricLog) -> None:
    spec = JobSpec.model_validate(
        {
            "name": "t",
            "mode": "federated",
            "data": {"source": "digits"},
            "model": {"name": "mlp", "options": {"norm": "batch"}},
            "federated": {"clients": {"num": 1000}},
        }
    )
    with pytest.raises(SourceError, match="gives this client a single training row, and batch normalisation needs two"):
        FederatedClient(spec, builtin(), 999, 1000, log)

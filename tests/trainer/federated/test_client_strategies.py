"""What FedProx, SCAFFOLD, FedBN and q-FedAvg do in a client's training: hand-computed steps, and identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.trainer.federated.clients import Job
from tests.trainer.parts import builtin
from trainer.data.prepare import prepare_client
from trainer.federated.local import LOCALS, start_local
from trainer.federated.names import VARIATE, is_norm
from trainer.losses import build_objective
from trainer.models import build_model, load_weights
from trainer.sections.strategy import Strategy
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import evaluate
from trainer.weights import Weights, map_weights

BATCH_NORM = {"name": "mlp", "options": {"hidden": [16], "norm": "batch"}}


def spec_with(strategy: str, **sections: Any) -> JobSpec:
    """Three local epochs of two clients; the strategy's options may be given as `options`."""
    options = sections.pop("options", {})
    federated = {"strategy": {"name": strategy, **options}, "local_epochs": 3} | sections.pop("federated", {})
    return JobSpec.model_validate(
        {"name": "t", "mode": "federated", "data": {"source": "digits"}, "model": {"name": "mlp"}}
        | sections
        | {"federated": federated}
    )


def job_of(spec: JobSpec, folder: Path, log: MetricLog) -> Job:
    folder.mkdir()
    return Job(spec, folder, log)


def one_weight(value: float) -> torch.nn.Module:
    model = torch.nn.Linear(1, 1, bias=False)
    load_weights(model, {"weight": np.array([[value]], np.float32)})
    return model


def test_every_strategy_has_its_local_part() -> None:
    parts = get_args(get_args(Strategy)[0])
    assert set(LOCALS) == {get_args(part.model_fields["name"].annotation)[0] for part in parts}


# --- FedProx ----------------------------------------------------------------------------------------------------------


def test_the_proximal_gradient_by_hand() -> None:
    model = one_weight(0.0)
    weights = {"weight": np.array([[1.0]], np.float32)}
    local = start_local(spec_with("fedprox", options={"mu": 0.5}), model, weights, {}, {})
    (parameter,) = model.parameters()
    assert parameter.item() == 1.0  # the round starts from the global weight
    with torch.no_grad():
        parameter.fill_(3.0)
    parameter.grad = torch.tensor([[10.0]])
    local.correct_gradients()
    assert parameter.grad.item() == 10 + 0.5 * (3 - 1)


def test_mu_of_zero_is_fedavg(tmp_path: Path, log: MetricLog) -> None:
    plain = job_of(spec_with("fedavg"), tmp_path / "plain", log)
    proximal = job_of(spec_with("fedprox", options={"mu": 0}), tmp_path / "proximal", log)
    for job in (plain, proximal):
        job.round()
    assert plain.weights_path.read_bytes() == proximal.weights_path.read_bytes()


def test_a_stronger_pull_keeps_clients_closer(tmp_path: Path, log: MetricLog) -> None:
    lengths = []
    for mu in (0, 1, 10):
        spec = spec_with("fedprox", options={"mu": mu}, training={"optimizer": {"name": "sgd", "lr": 0.05}})
        job = job_of(spec, tmp_path / str(mu), log)
        job.round()
        update = map_weights(job.folder / "update-0.safetensors")
        lengths.append(sum(float((delta.astype(np.float64) ** 2).sum()) for delta in update.values()))
    assert lengths[0] > 2 * lengths[1] > 4 * lengths[2]


# --- SCAFFOLD ---------------------------------------------------------------------------------------------------------


def scaffold_spec(lr: float) -> JobSpec:
    return spec_with("scaffold", training={"optimizer": {"name": "sgd", "lr": lr}})


def test_control_variates_by_hand() -> None:
    """x = 1, c = 0.5, c_i = 0.2 and gradients 2 and 4 at lr 0.1: y = 1 - 0.1 * 2.3 - 0.1 * 4.3 = 0.34, then
    c_i+ = 0.2 - 0.5 + (1 - 0.34) / (2 * 0.1) = 3: the mean of the gradients."""
    model = one_weight(0.0)
    memory, kept = {"variate/weight": np.array([[0.5]], np.float32)}, {"variate.weight": np.array([[0.2]], np.float32)}
    local = start_local(scaffold_spec(0.1), model, {"weight": np.array([[1.0]], np.float32)}, memory, kept)
    (parameter,) = model.parameters()
    for gradient in (2.0, 4.0):
        parameter.grad = torch.tensor([[gradient]])
        local.correct_gradients()
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad
    delta, beside, after = local.finish(2)
    assert delta["weight"].item() == pytest.approx(-0.66, rel=1e-6)
    assert after["variate.weight"].item() == pytest.approx(3.0, rel=1e-5)
    assert beside["variate.weight"].item() == pytest.approx(3.0 - 0.2, rel=1e-5)
    assert all(tensor.dtype == np.float32 for part in (delta, beside, after) for tensor in part.values())


def test_before_the_first_round_scaffold_is_fedavg(tmp_path: Path, log: MetricLog) -> None:
    """All variates are zero, so the deltas are those of plain SGD; only the variates travel besides."""
    updates = []
    for spec in (spec_with("fedavg"), spec_with("scaffold")):
        job = job_of(spec, tmp_path / str(len(updates)), log)
        job.round()
        updates.append(map_weights(job.folder / "update-0.safetensors"))
    plain, corrected = updates
    assert corrected.keys() == plain.keys() | {VARIATE + name for name in plain}
    for name, delta in plain.items():
        np.testing.assert_array_equal(corrected[name], delta)


def test_full_batch_scaffold_knows_its_gradient(tmp_path: Path, log: MetricLog) -> None:
    """One step on all rows: c_i+ is the client's gradient at x, and c their mean; so the second round's step is that of
    the mean gradient g - c_i + c, the same for both clients up to what their gradients have changed."""
    full = {"batch_size": 10_000, "optimizer": {"name": "sgd", "lr": 0.1}}
    spec = spec_with("scaffold", training=full, federated={"local_epochs": 1})
    job = Job(spec, tmp_path, log)
    start = dict(map_weights(job.weights_path))
    job.round()
    gradients = [gradient_at(spec, start, client) for client in (0, 1)]
    for client, gradient in enumerate(gradients):
        kept = map_weights(job.kept / f"client-{client}-round-1.safetensors")
        for name, value in gradient.items():
            np.testing.assert_allclose(kept[VARIATE + name], value, rtol=1e-3, atol=1e-6)
    mean = {name: (gradients[0][name] + gradients[1][name]) / 2 for name in start}
    for name, value in mean.items():
        np.testing.assert_allclose(job.state.memory["variate"][name], value, rtol=1e-3, atol=1e-6)
    second = dict(map_weights(job.weights_path))
    job.round()
    for client, gradient in enumerate(gradients):
        update = map_weights(job.folder / f"update-{client}.safetensors")
        now = gradient_at(spec, second, client)
        for name in start:
            expected = -0.1 * (now[name] - gradient[name] + mean[name])
            np.testing.assert_allclose(update[name], expected, rtol=1e-3, atol=1e-6)


def gradient_at(spec: JobSpec, weights: Weights, client: int) -> Weights:
    """The gradient of a client's mean loss over all its rows."""
    data = prepare_client(spec, builtin(), client, 2)
    model = build_model(spec.model, builtin().description, 0)
    load_weights(model, weights)
    torch.autograd.backward(build_objective("auto", "classification").loss(model(data.train_x), data.train_y))
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def test_running_statistics_have_no_variate(tmp_path: Path, log: MetricLog) -> None:
    job = Job(spec_with("scaffold", model=BATCH_NORM), tmp_path, log)
    job.round()
    update = map_weights(tmp_path / "update-0.safetensors")
    assert np.any(update["norm1.running_var"])
    assert not np.any(update[VARIATE + "norm1.running_var"])
    assert np.any(update[VARIATE + "norm1.weight"])


def test_scaffold_takes_the_drift_out(tmp_path: Path, log: MetricLog) -> None:
    """Clients with different labels and many local steps: the corrected ones end with the lower loss on all test rows."""
    losses = {}
    for strategy in ("fedavg", "scaffold"):
        spec = spec_with(
            strategy,
            data={"source": "digits", "partition": {"scheme": "shards"}},
            federated={"local_epochs": 5, "clients": {"num": 5}},
            training={"optimizer": {"name": "sgd", "lr": 0.05}},
        )
        job = job_of(spec, tmp_path / strategy, log)
        results = [job.round() for _ in range(15)]
        losses[strategy] = float(np.mean([result.metrics["global/loss"] for result in results[-1]]))
    assert losses["scaffold"] < 0.8 * losses["fedavg"]


# --- FedBN ------------------------------------------------------------------------------------------------------------


def test_normalisation_stays_with_each_client(tmp_path: Path, log: MetricLog) -> None:
    spec = spec_with("fedbn", model=BATCH_NORM, data={"source": "digits", "partition": {"scheme": "shards"}})
    job = Job(spec, tmp_path, log)
    start = dict(map_weights(job.weights_path))
    for _ in range(2):
        job.round()
    own = [map_weights(job.kept / f"client-{client}-round-2.safetensors") for client in (0, 1)]
    norms = {name for name in start if is_norm(name)}
    assert all(kept.keys() == {f"own.{name}" for name in norms} for kept in own)
    assert not any(is_norm(name) for name in map_weights(tmp_path / "update-0.safetensors"))
    for name, value in job.state.weights.items():
        assert np.array_equal(value, start[name]) == (name in norms)
    assert not np.array_equal(own[0]["own.norm1.running_mean"], own[1]["own.norm1.running_mean"])


def test_a_client_goes_on_with_its_own_layers(tmp_path: Path, log: MetricLog) -> None:
    """What a round judges as global is the global weights with the client's own layers (Li et al. 2021, algorithm 1)."""
    spec = spec_with("fedbn", model=BATCH_NORM)
    job = Job(spec, tmp_path, log)
    job.round()
    own = map_weights(job.kept / "client-0-round-1.safetensors")
    model = build_model(spec.model, builtin().description, 0)
    load_weights(model, job.state.weights | {name.removeprefix("own."): value for name, value in own.items()})
    data = prepare_client(spec, builtin(), 0, 2)
    expected = evaluate(model, build_objective("auto", "classification"), data.test_x, data.test_y, precision="float32")
    assert job.round()[0].metrics["global/loss"] == pytest.approx(expected["loss"], rel=1e-6)


# --- q-FedAvg, FedNova ------------------------------------------------------------------------------------------------


def test_the_loss_before_is_that_of_the_incoming_weights(tmp_path: Path, log: MetricLog) -> None:
    spec = spec_with("qfedavg")
    job = Job(spec, tmp_path, log)
    (first, second) = job.round()
    model = build_model(spec.model, builtin().description, spec.seed)
    for client, result in enumerate((first, second)):
        data = prepare_client(spec, builtin(), client, 2)
        objective = build_objective("auto", "classification")
        expected = evaluate(model, objective, data.train_x, data.train_y, precision="float32")["loss"]
        assert result.loss_before == pytest.approx(expected, rel=1e-6)


def test_steps_are_counted_and_nothing_more_is_measured(tmp_path: Path, log: MetricLog) -> None:
    job = Job(spec_with("fednova", training={"batch_size": 100}), tmp_path, log)
    for result in job.round():
        assert result.num_steps == 3 * -(-result.num_examples // 100)
        assert result.loss_before is None
        assert result.label_counts is None
    assert not job.kept.exists()

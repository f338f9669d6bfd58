"""How simulations end, early or badly, and what their clients may be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.ports import free_port
from tests.trainer.simulation.worlds import ENVIRONMENT, alone, be_rank, plan_of, small_spec, start_of
from trainer.data.files import describe_file
from trainer.data.source import Source, SourceError
from trainer.simulation.plan import SimulationFailed
from trainer.spec import JobSpec


def test_the_goal_ends_it(tmp_path: Path) -> None:
    spec = small_spec(rounds=50, stop={"metric": "server/accuracy", "target": 0.6})
    outcome = alone(spec, tmp_path)
    last = outcome.rounds[-1]
    assert last.metrics["server/accuracy"] >= 0.6
    assert last.stopped == f"server/accuracy is {last.metrics['server/accuracy']:.6g}, and the target was 0.6."
    assert all(round_.metrics["server/accuracy"] < 0.6 and not round_.stopped for round_ in outcome.rounds[:-1])
    assert last.round < 50


def test_patience_counts_rounds_of_before_the_start(tmp_path: Path) -> None:
    spec = small_spec(rounds=50, stop={"metric": "server/loss", "patience": 3})
    start = start_of(spec, round=6, history=[(3, 1e-9), (4, 1.0), (5, 1.0)])
    outcome = alone(spec, tmp_path, start=start)
    assert [round_.round for round_ in outcome.rounds] == [6]
    assert outcome.rounds[0].stopped == "server/loss has not improved for 3 rounds."
    resumed = alone(spec, tmp_path / "resumed", start=start.model_copy(update={"resumed_at": 5}))
    assert [round_.round for round_ in resumed.rounds] == [6, 7, 8]


def test_weights_are_measured_every_few_rounds_and_at_the_end(tmp_path: Path) -> None:
    outcome = alone(small_spec(rounds=5, evaluate_every=2), tmp_path)
    assert [round_.round for round_ in outcome.rounds if "server/loss" in round_.metrics] == [2, 4, 5]


def test_privacy_draws_clients_and_says_what_was_spent(tmp_path: Path) -> None:
    privacy = {"noise_multiplier": 2.0, "delta": 1e-3}
    spec = small_spec(clients={"simulate": 60, "per_round": 40}, privacy=privacy, rounds=3)
    outcome = alone(spec, tmp_path)
    spent = [round_.facts["epsilon"] for round_ in outcome.rounds]
    assert spent == sorted(spent)
    assert all(round_.num_clients == len(round_.facts["norms"]) for round_ in outcome.rounds)
    limited = small_spec(
        clients={"simulate": 60, "per_round": 40}, privacy={**privacy, "max_epsilon": spent[1]}, rounds=3
    )
    stopped = alone(limited, tmp_path / "limited")
    assert [round_.round for round_ in stopped.rounds] == [1, 2]
    assert "privacy.max_epsilon" in stopped.rounds[-1].stopped


def test_clients_that_diverge_fail_the_round_with_a_sentence(tmp_path: Path) -> None:
    raw = small_spec({"name": "mlp", "options": {"hidden": [8]}}).model_dump()
    raw["training"] |= {"optimizer": {"name": "sgd", "lr": 100.0}, "loss": "auto"}
    raw["data"] |= {"source": "diabetes", "partition": {"scheme": "iid"}}
    with pytest.raises(SimulationFailed, match=r"^Round \d+ failed: 0 of 4 clients gave an update that can be summed"):
        alone(JobSpec.model_validate(raw), tmp_path)


def test_the_natural_partition_has_no_virtual_clients(tmp_path: Path) -> None:
    raw = small_spec().model_dump()
    raw["data"]["partition"] = {"scheme": "natural"}
    spec = JobSpec.model_construct(**dict(small_spec().model_copy(update={"data": small_spec().data})))
    spec = spec.model_copy(update={"data": JobSpec.model_validate(raw).data})
    with pytest.raises(SourceError, match="natural partition"):
        alone(spec, tmp_path)


def test_ten_thousand_clients_of_a_row_or_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=rng.normal(size=(20_000, 3)).astype(np.float32), y=rng.integers(0, 2, 20_000))
    source = Source(description=describe_file("many", rows, "y", "classification"), path=rows)
    raw = small_spec(clients={"simulate": 10_000, "per_round": 50}, rounds=2).model_dump()
    raw["data"] = {"source": "many", "test_fraction": 0.25, "partition": {"scheme": "iid"}}
    spec = JobSpec.model_validate(raw)
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    outcome = be_rank(spec, source, plan_of(spec, tmp_path, source), rank=0, size=1, nodes=1, port=free_port())
    os.environ.update({name: value for name, value in before.items() if value is not None})
    for round_ in outcome.rounds:
        assert round_.num_clients == 50
        assert {client.num_examples for client in round_.clients} <= {1, 2}
    assert not list(tmp_path.glob("update-*"))

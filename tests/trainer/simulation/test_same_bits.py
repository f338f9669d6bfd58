"""A simulation gives the weights that real clients give, to the bit: whatever the strategy, the encoding, the ranks and the nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.simulation.real_clients import train_real_clients
from tests.trainer.simulation.worlds import alone, small_spec, start_of, together
from trainer.federated.kept import keeps_something
from trainer.federated.memory_files import flat_memory
from trainer.weights import map_weights, pack_weights

LAYERS = {"name": "mlp", "options": {"hidden": [8], "norm": "layer"}}
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"strategy": {"name": "fedprox", "mu": 0.5}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "fednova": {"strategy": {"name": "fednova"}},
    "fedbn": {"strategy": {"name": "fedbn"}},
    "qfedavg": {"strategy": {"name": "qfedavg", "q": 1.0}},
    "fusion": {"strategy": {"name": "fusion", "weights": [1, 2, 3, 4, 5, 6, 7, 8, 9]}},
    "adam": {"server_optimizer": {"name": "adam", "lr": 0.05}},
    "median": {"aggregator": {"name": "median"}},
    "bfloat16": {"encoding": {"name": "bfloat16"}},
    "int8": {"encoding": {"name": "int8"}},
    "top_k": {"encoding": {"name": "top_k", "fraction": 0.1}},
}


@pytest.mark.parametrize("case", list(CASES))
def test_virtual_clients_equal_real_ones(case: str, tmp_path: Path) -> None:
    spec = small_spec(model=LAYERS, **CASES[case])
    state = train_real_clients(spec, tmp_path / "real")
    outcome = alone(spec, tmp_path / "virtual")
    assert outcome.weights == pack_weights(state.weights)
    memory = outcome.packs[-1].memory
    assert (map_weights(memory).keys() if memory else set()) == flat_memory(state.memory).keys()
    if memory:
        assert memory.read_bytes() == pack_weights(flat_memory(state.memory))


@pytest.mark.parametrize(
    ("case", "size", "nodes"), [("fedavg", 2, 1), ("fedavg", 3, 1), ("scaffold", 2, 2), ("top_k", 4, 2)]
)
def test_any_number_of_ranks_gives_the_same_bits(case: str, size: int, nodes: int, tmp_path: Path) -> None:
    spec = small_spec(model=LAYERS, **CASES[case])
    one = alone(spec, tmp_path / "one")
    many = together(spec, tmp_path / "many", size=size, nodes=nodes)
    assert many.weights == one.weights
    assert [round_.metrics for round_ in many.rounds] == [round_.metrics for round_ in one.rounds]
    assert [round_.facts for round_ in many.rounds] == [round_.facts for round_ in one.rounds]


@pytest.mark.parametrize("case", ["fedavg", "scaffold", "fedbn", "adam", "top_k"])
def test_a_resumed_simulation_equals_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    spec = small_spec(model=LAYERS, **CASES[case])
    whole = alone(spec, tmp_path / "whole")
    kept = tmp_path / "kept"
    first = alone(spec, tmp_path / "first", kept=kept, start=start_of(spec, last_round=2))
    # What ran on after the last recorded round, and was lost in a crash.
    lost = {"start": start_of(spec, round=3), "weights": first.packs[-1].weights, "memory": first.packs[-1].memory}
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "recorded").write_text("2")
    alone(spec, tmp_path / "lost", kept=kept, **lost)
    again = alone(spec, tmp_path / "again", kept=kept, **lost)
    assert again.weights == whole.weights
    assert [round_.round for round_ in again.rounds] == [3, 4]
    assert spec.federated is not None
    assert kept.exists() == keeps_something(spec.federated)


def test_the_last_curves_go_ahead_of_the_last_rounds(tmp_path: Path) -> None:
    outcome = alone(small_spec(), tmp_path)
    assert outcome.curves("aggregate")["server/loss"] == [
        (round_.round, round_.metrics["server/loss"]) for round_ in outcome.rounds
    ]
    drawn = [round_.round for round_ in outcome.rounds if 0 in [client.client for client in round_.clients]]
    assert [step for step, _ in outcome.curves("client 0")["train/loss"]] == drawn


def test_every_round_tells_of_its_clients(tmp_path: Path) -> None:
    spec = small_spec()
    outcome = alone(spec, tmp_path, share_label_counts=True)
    assert [round_.round for round_ in outcome.rounds] == [1, 2, 3, 4]
    for round_ in outcome.rounds:
        assert round_.num_clients == len(round_.clients) == 4
        assert round_.num_examples == sum(client.num_examples for client in round_.clients)
        assert all(client.num_steps == -(-client.num_examples // 10) for client in round_.clients)
        assert [client.norm for client in round_.clients] == round_.facts["norms"]
        mean = sum(client.num_examples * (client.loss or 0) for client in round_.clients) / round_.num_examples
        assert round_.metrics["train/loss"] == pytest.approx(mean)
    counts = outcome.packs[0].label_counts
    assert counts is not None
    assert sum(sum(part.values()) for part in counts) == 1797 - 359


def test_files_of_rounds_that_the_server_has_are_removed(tmp_path: Path) -> None:
    """All but the last of them: a new attempt starts from that."""
    spec = small_spec(model=LAYERS, clients={"per_round": 9}, **CASES["scaffold"])
    (tmp_path / "recorded").write_text("3")
    alone(spec, tmp_path)
    files = {file.stem.rpartition("-")[2] for file in (tmp_path / "kept" / "client-4").iterdir()}
    assert files == {"3", "4"}

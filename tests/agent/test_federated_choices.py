"""What strategies, evaluation and policy change of a round on a node: files kept, memory fetched, counts told or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from trainer.protocol import Points, ReceiveModel, RunReport, TrainRound
from trainer.spec import JobSpec
from trainer.telemetry import unpack_points
from trainer.weights import pack_weights


def spec_of(**federated: Any) -> JobSpec:
    model = {"name": "mlp", "options": {"hidden": [16], "norm": "batch"}}
    return federated_spec(model=model, federated={"rounds": 3, "clients": {"num": 2}, **federated})


SCAFFOLD = spec_of(strategy={"name": "scaffold"})
FEDBN = spec_of(strategy={"name": "fedbn"})


def a_round(far_end: FarEnd, number: int, spec: JobSpec, **changes: Any) -> TrainRound:
    weights = far_end.add_blob(weights_for(spec))
    numbers = {"job_id": number, "attempt_id": number, "round": 1} | changes
    return TrainRound(spec=spec, client=0, num_clients=2, weights=weights, **numbers)


def kept(agent: AgentUnderTest, job_id: int) -> list[str]:
    return sorted(file.name for file in (agent.home / "state" / f"job-{job_id}").glob("*"))


def update_of(agent: AgentUnderTest, far_end: FarEnd, message: TrainRound) -> dict[str, Any]:
    """Let the agent train a round; return its offer."""
    known = len(far_end.updates)
    agent.send(message)
    eventually(lambda: len(far_end.updates) > known)
    return far_end.updates[-1][2]


def test_a_client_keeps_its_variate_before_its_update_leaves(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    first = update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD))
    assert kept(agent, attempt_id) == ["client-0-round-1.safetensors"]
    # c_i began at 0: what travelled is what was kept.
    update = load(far_end.blobs[first["digest"]])
    own = load_file(agent.home / "state" / f"job-{attempt_id}" / "client-0-round-1.safetensors")
    assert own.keys() == {name for name in update if name.startswith("variate.")}
    assert all((own[name] == update[name]).all() for name in own)


def test_the_memory_of_the_strategy_is_fetched_and_used(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    weights = load(weights_for(SCAFFOLD))
    ones = pack_weights({f"variate/{name}": np.full(value.shape, attempt_id, "f4") for name, value in weights.items()})
    memory = far_end.add_blob(ones)
    message = a_round(far_end, attempt_id, SCAFFOLD, memory=memory)
    plain = load(far_end.blobs[update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD))["digest"]])
    # Another job, so that nothing is kept from the first.
    offer = update_of(
        agent, far_end, message.model_copy(update={"attempt_id": 1000 + attempt_id, "job_id": 1000 + attempt_id})
    )
    pushed = load(far_end.blobs[offer["digest"]])
    assert offer["bytes_down"] == memory.size_bytes  # the weights lay there already
    assert np.all(pushed["1.weight"] < plain["1.weight"])


def test_a_round_that_is_asked_again_gives_the_same_bits(make_agent: Any, far_end: FarEnd, attempt_id: int) -> None:
    """Also by an agent that was killed when the first update had left, and has started anew."""
    agent = make_agent()
    update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD))
    second = a_round(far_end, attempt_id, SCAFFOLD, round=2, counted_round=1)
    first = update_of(agent, far_end, second)
    agent.kill()
    agent.start()
    again = update_of(agent, far_end, second)
    assert again["digest"] == first["digest"]
    assert kept(agent, attempt_id) == ["client-0-round-1.safetensors", "client-0-round-2.safetensors"]


def test_what_the_server_refused_has_not_happened(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD))
    far_end.verdict = {"accepted": False, "reason": "Round 2 is closed."}
    update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD, round=2, counted_round=1))
    eventually(lambda: kept(agent, attempt_id) == ["client-0-round-1.safetensors"])


def test_a_client_goes_on_from_the_round_that_the_server_counted(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    """Not from one whose update left and was never counted: the attempt ended before its round closed, say."""

    def own(number: int) -> dict[str, Any]:
        return load_file(agent.home / "state" / f"job-{attempt_id}" / f"client-0-round-{number}.safetensors")

    update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD))
    update_of(agent, far_end, a_round(far_end, attempt_id, SCAFFOLD, round=2, counted_round=1))
    counted = own(1)
    message = a_round(far_end, attempt_id, SCAFFOLD, round=3, counted_round=1)
    change = load(far_end.blobs[update_of(agent, far_end, message)["digest"]])
    assert all(np.array_equal(value, counted[name] + change[name]) for name, value in own(3).items())
    assert kept(agent, attempt_id) == ["client-0-round-1.safetensors", "client-0-round-3.safetensors"]


def test_the_final_model_has_the_clients_own_layers_beside_it(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    offer = update_of(agent, far_end, a_round(far_end, attempt_id, FEDBN))
    assert not [name for name in load(far_end.blobs[offer["digest"]]) if name.startswith("norm")]
    final = weights_for(FEDBN)
    agent.send(ReceiveModel(job_id=attempt_id, attempt_id=attempt_id, weights=far_end.add_blob(final)))
    eventually(lambda: agent.told(RunReport, kind="model_kept", attempt_id=attempt_id))
    models = agent.home / "models"
    assert (models / f"job-{attempt_id}.safetensors").read_bytes() == final
    own = load_file(models / f"job-{attempt_id}-own.safetensors")
    assert all(np.array_equal(own[name], value) == ("norm" not in name) for name, value in load(final).items())
    assert kept(agent, attempt_id)  # the job may be given more rounds


def test_a_round_without_evaluation(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    offer = update_of(agent, far_end, a_round(far_end, attempt_id, federated_spec(), evaluate=False))
    assert offer["metrics"].keys() == {"train/loss", "train/accuracy"}
    packs = [(m, data) for _, m, data in agent.entries if isinstance(m, Points) and m.attempt_id == attempt_id]
    assert {series.name for pack in packs for series in unpack_points(*pack)} == {"train/loss", "train/accuracy"}


def test_labels_of_a_built_in_source_are_told(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    offer = update_of(agent, far_end, a_round(far_end, attempt_id, federated_spec()))
    assert offer["label_counts"].keys() == {str(digit) for digit in range(10)}
    assert sum(offer["label_counts"].values()) == offer["num_examples"]


@pytest.mark.parametrize("shares", [False, True])
def test_labels_of_an_own_source_are_told_where_the_policy_says_so(
    shares: bool, make_agent: Any, far_end: FarEnd, attempt_id: int, tmp_path: Path
) -> None:
    rows = "".join(f"{n},{'sick' if n % 3 == 0 else 'well'}\n" for n in range(60))
    (tmp_path / "ward.csv").write_text(f"age,outcome\n{rows}")
    policy = "share_label_counts = true\n" if shares else ""
    source = f'[[sources]]\nname = "ward"\npath = "{tmp_path}/ward.csv"\nlabel = "outcome"\ntask = "classification"\n'
    agent = make_agent(toml=policy + source)
    spec = federated_spec(model={"name": "linear"}, data={"source": "ward", "partition": {"scheme": "natural"}})
    weights = far_end.add_blob(pack_weights({"1.weight": np.zeros((2, 1), "f4"), "1.bias": np.zeros(2, "f4")}))
    message = TrainRound(job_id=1, attempt_id=attempt_id, round=1, spec=spec, client=0, num_clients=2, weights=weights)
    told = update_of(agent, far_end, message)["label_counts"]
    if not shares:
        assert told is None
    else:
        assert told.keys() == {"sick", "well"}
        assert sum(told.values()) == 48


def test_a_long_round_says_that_it_comes_further(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    local = {"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}}
    endless = federated_spec(federated=local, training={"optimizer": {"name": "sgd"}, "batch_size": 1})
    agent.send(a_round(far_end, attempt_id, endless))
    (report,) = eventually(lambda: agent.told(RunReport, kind="progress", attempt_id=attempt_id))
    assert report.round == 1

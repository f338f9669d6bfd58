"""A real agent with a privacy budget: what it charges, tells and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from trainer.agent.ledger import read_charges
from trainer.federated.row_privacy import Cost, epsilon_of
from trainer.protocol import Points, RunReport, TrainRound

STEPS = round(719 / 200)
COST = Cost(1.0, 200 / 719, STEPS)
"""Of a round: half of the 1,438 training rows in batches of 200."""
TWO_ROUNDS = epsilon_of([COST._replace(steps=2 * STEPS)], 1e-5)
TOML = f"""
slots = 4
[[budgets]]
source = "digits"
max_epsilon = {1.001 * TWO_ROUNDS}
"""


def a_round(far_end: FarEnd, number: int, attempt_id: int, *, source: str = "digits", **federated: Any) -> TrainRound:
    spec = federated_spec(
        data={"source": source, "scaling": "none"},
        training={"batch_size": 200},
        federated={"clients": {"num": 2}, **federated},
    )
    weights = far_end.add_blob(weights_for(spec))
    return TrainRound(
        job_id=attempt_id, attempt_id=attempt_id, round=number, spec=spec, client=0, num_clients=2, weights=weights
    )


def charges_of(agent: AgentUnderTest, source: str = "digits") -> list[Any]:
    return read_charges(Path(agent.home) / "ledger" / f"{source}.jsonl")[0]


def refusal(agent: AgentUnderTest, attempt_id: int) -> str:
    [report] = eventually(lambda: agent.told(RunReport, attempt_id=attempt_id, kind="refused"))
    return str(report.text)


def test_two_rounds_train_and_the_third_is_refused_before_it_does(make_agent: Any, far_end: FarEnd) -> None:
    agent = make_agent(toml=TOML)
    for number in (1, 2):
        agent.send(a_round(far_end, number, 1, local_privacy={"delta": 1e-4}))
        eventually(lambda number=number: len(far_end.updates) == number)
    offers = [offer for _, _, offer in far_end.updates]
    # Of the job, at the spec's delta.
    expected = [epsilon_of([COST._replace(steps=num * STEPS)], 1e-4) for num in (1, 2)]
    assert [offer["epsilon"] for offer in offers] == pytest.approx(expected)
    assert [offer["num_steps"] for offer in offers] == [STEPS, STEPS]
    # The same weights and rows, and noise of their own.
    first, second = (load(far_end.blobs[offer["digest"]])["1.weight"] for offer in offers)
    assert (first != second).mean() > 0.99
    assert np.isfinite(first).all()
    # What clients measure is in no account, so none of it leaves the node.
    assert [(offer["metrics"], offer["loss_before"], offer["label_counts"]) for offer in offers] == [
        ({}, None, None)
    ] * 2
    assert agent.told(Points) == []

    agent.send(a_round(far_end, 3, 1, local_privacy={"delta": 1e-4}))
    assert refusal(agent, 1).startswith(
        "node-1 refused round 3 before training: its privacy budget for 'digits' is epsilon "
    )
    assert len(far_end.updates) == 2
    assert [charge.round for charge in charges_of(agent)] == [1, 2]

    # Another job finds the budget as spent as the first, and the node says so in its heartbeats.
    agent.send(a_round(far_end, 1, 2, local_privacy={}))
    assert "is spent, and the round would bring it to" in refusal(agent, 2)
    [told] = eventually(
        lambda: [b for b in agent.heartbeats()[-1].facts.budgets if b.spent_epsilon == pytest.approx(TWO_ROUNDS)]
    )
    assert (told.source, told.delta) == ("digits", 1e-5)

    # A job without a bound has no business there at all; other sources have no budget, and a ledger all the same.
    agent.send(a_round(far_end, 1, 3))
    assert "this job has no bound on what it learns of single rows" in refusal(agent, 3)
    agent.send(a_round(far_end, 1, 4, source="diabetes", local_privacy={}))
    eventually(lambda: len(far_end.updates) == 3)
    assert far_end.updates[-1][2]["epsilon"] > 0
    assert "test/loss" in far_end.updates[-1][2]["metrics"]
    assert len(charges_of(agent, "diabetes")) == 1


def test_a_round_whose_agent_was_killed_is_charged_and_trained_again_for_another(
    make_agent: Any, far_end: FarEnd
) -> None:
    agent = make_agent(toml=TOML)
    slow = a_round(far_end, 1, 1, local_privacy={"noise_multiplier": 50.0}, local_epochs=1000)
    agent.send(slow)
    eventually(lambda: charges_of(agent))
    agent.kill()  # charged, and not trained
    assert not far_end.updates
    agent.start()
    [told] = agent.heartbeats()[-1].facts.budgets
    once = epsilon_of([charge.cost for charge in charges_of(agent)], 1e-5)
    assert told.spent_epsilon == pytest.approx(once)
    agent.send(slow)
    eventually(lambda: len(charges_of(agent)) == 2)


def test_a_damaged_ledger_stops_the_start_with_a_sentence(make_agent: Any) -> None:
    agent = make_agent(start=False, toml=TOML)
    folder = Path(agent.home) / "ledger"
    folder.mkdir()
    (folder / "digits.jsonl").write_text("no\nno\n")
    agent.spawn()
    assert agent.process.wait(30) == 1
    assert "is damaged: line 1 cannot be read" in agent.log.read_text()

"""A node with a small privacy budget: it trains two rounds, refuses the third before training, and the job goes on without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.realstack import Stack, digits, wait_for
from trainer.federated.row_privacy import Cost, epsilon_of

STEPS = round(719 / 100)
TWO_ROUNDS = epsilon_of([Cost(1.0, 100 / 719, 2 * STEPS)], 1e-5)
"""Of half of the digits' training rows in batches of 100."""


@pytest.fixture
def budgeted(stack: Stack) -> Iterator[Stack]:
    """The stack, with a budget on node-2 that lasts for two rounds. Afterwards it has none, for other tests."""
    toml = stack.home / "nodes" / "node-2" / "node.toml"
    before = toml.read_text()
    toml.write_text(f'{before}\n[[budgets]]\nsource = "digits"\nmax_epsilon = {1.001 * TWO_ROUNDS}\n')
    stack.kill("node-2")
    wait_for("the budget", lambda: stack.nodes()["node-2"]["budgets"])
    stack.wait_nodes()
    yield stack
    toml.write_text(before)
    stack.kill("node-2")
    wait_for("no budget", lambda: not stack.nodes()["node-2"]["budgets"])
    stack.wait_nodes()


def private(**federated: object) -> dict[str, object]:
    spec = digits(rounds=3, local_privacy={}, **federated)
    return spec | {"training": {"batch_size": 100}, "data": {"source": "digits", "scaling": "none"}}


def test_a_node_refuses_what_would_overspend_and_the_job_goes_on_as_the_quorum_says(budgeted: Stack) -> None:
    job_id = budgeted.submit(private())
    job = budgeted.wait_state(job_id, "finished", "failed")
    assert (job["state"], job["state_reason"]) == ("finished", "All 3 rounds closed, with 1 update missing.")
    rounds = sorted(budgeted.items(f"/jobs/{job_id}/rounds"), key=lambda round_: round_["number"])
    by_node = [{p["node"]: p for p in round_["participations"]} for round_ in rounds]
    assert [clients["node-2"]["state"] for clients in by_node] == ["returned", "returned", "refused"]
    assert by_node[2]["node-2"]["state_reason"].startswith(
        "node-2 refused round 3 before training: its privacy budget for 'digits' is epsilon "
    )
    # Each client says what the job has spent of its rows; node-1 has no budget, and spends all the same.
    spent = [epsilon_of([Cost(1.0, 100 / 719, number * STEPS)], 1e-5) for number in (1, 2, 3)]
    assert [clients["node-1"]["epsilon"] for clients in by_node] == pytest.approx(spent)
    assert by_node[1]["node-2"]["epsilon"] == pytest.approx(TWO_ROUNDS)
    [shown] = budgeted.nodes()["node-2"]["budgets"]
    assert shown["spent_epsilon"] == pytest.approx(TWO_ROUNDS)

    # A job that needs everyone fails, and says who refused and why.
    job = budgeted.wait_state(budgeted.submit(private(clients={"num": 2, "quorum": 1.0})), "failed")
    assert "node-2 refused round 1 before training: its privacy budget for 'digits'" in job["state_reason"]

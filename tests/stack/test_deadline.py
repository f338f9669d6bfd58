"""The deadline of a round on real nodes: who is at work is waited for, and nobody for ever."""

from __future__ import annotations

from datetime import datetime

import psutil
import pytest

from tests.realstack import Stack, digits


@pytest.fixture
def warm_stack(stack: Stack) -> Stack:
    """The stack, its nodes' runners warm: importing torch on a busy machine takes longer than these deadlines."""
    stack.wait_state(stack.submit(digits(rounds=1)), "finished")
    stack.wait_nodes()
    return stack


def test_clients_at_work_are_waited_for_until_twice_the_deadline(warm_stack: Stack):
    # A million steps: no machine does them in 20 s.
    endless = digits(rounds=1, local_epochs=1000, round_deadline_seconds=10) | {"training": {"batch_size": 1}}
    job_id = warm_stack.submit(endless)
    job = warm_stack.wait_state(job_id, "failed")
    assert job["state_reason"] == (
        "Round 1 needed 1 update of 2 and got 0. "
        "Missing: node-1 (it was still making progress), node-2 (it was still making progress)."
    )
    (round_,) = warm_stack.items(f"/jobs/{job_id}/rounds")
    opened, closed = (datetime.fromisoformat(round_[name]) for name in ("opened_at", "closed_at"))
    assert 20 <= (closed - opened).total_seconds() < 30
    # The slots are free again: the runners were stopped in the middle of their work.
    warm_stack.wait_nodes()


def test_a_client_that_hangs_is_not(warm_stack: Stack):
    """The node's own heartbeats go on; its stopped runners say nothing, and each round closes at its deadline."""
    hung = psutil.Process(warm_stack.pid_of("node-2")).children(recursive=True)
    for process in hung:
        process.suspend()
    try:
        job_id = warm_stack.submit(digits(rounds=2, round_deadline_seconds=10))
        job = warm_stack.wait_state(job_id, "finished")
    finally:
        for process in hung:
            process.resume()
    assert job["state_reason"] == "All 2 rounds closed, with 2 updates missing."
    for round_ in warm_stack.items(f"/jobs/{job_id}/rounds"):
        assert [p["state"] for p in round_["participations"]] == ["returned", "late"]
        reason = round_["participations"][1]["state_reason"]
        assert reason == f"It was not in when round {round_['number']} closed, and had shown no progress."

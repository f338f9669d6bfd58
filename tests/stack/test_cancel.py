"""Cancel: in every state, in under five seconds, and the slots are free again."""

from __future__ import annotations

import time

from tests.realstack import Stack, digits, wait_for

LONG = 100_000
"""Rounds or epochs that no test waits for."""


def cancel_and_time(stack: Stack, job_id: int) -> float:
    """Cancel; return the seconds until the job is cancelled and no node holds a slot for it."""
    started = time.monotonic()
    assert stack.post(f"/jobs/{job_id}/cancel").status_code in (200, 202)

    def freed() -> bool:
        job = stack.wait_state(job_id, "cancelled", seconds=10)
        return all(held["state"] == "released" for attempt in job["attempts"] for held in attempt["assignments"])

    wait_for("the slots", freed, seconds=10)
    return time.monotonic() - started


def test_a_job_that_waits(stack: Stack):
    job_id = stack.submit(digits(clients={"num": 3}))
    job = wait_for("what it waits for", lambda: (j := stack.job(job_id))["waiting_for"] and j, seconds=15)
    assert job["state"] == "queued"
    assert cancel_and_time(stack, job_id) < 5


def test_a_federated_job_in_a_round(stack: Stack):
    job_id = stack.submit(digits(rounds=LONG))
    stack.wait_progress(job_id, 2)
    assert cancel_and_time(stack, job_id) < 5


def test_a_federated_job_at_once(stack: Stack):
    job_id = stack.submit(digits(rounds=LONG))
    assert cancel_and_time(stack, job_id) < 5


def test_a_distributed_job_that_trains(stack: Stack):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=LONG))
    wait_for("the first point", lambda: stack.get(f"/jobs/{job_id}/metrics", name="train/loss", points=10)["series"])
    assert cancel_and_time(stack, job_id) < 5


def test_a_distributed_job_at_once(stack: Stack):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=LONG))
    stack.wait_state(job_id, "running")
    assert cancel_and_time(stack, job_id) < 5


def test_a_job_that_ended(stack: Stack):
    job_id = stack.submit(digits(rounds=1))
    stack.wait_state(job_id, "finished")
    answer = stack.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 409
    assert "finished" in answer.json()["detail"]
    assert stack.job(job_id)["state"] == "finished"

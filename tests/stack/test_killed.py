"""kill -9 of each process in mid-job: it ends resumed or failed with a sentence within a minute, and leaves nobody."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.realstack import ENDED, Stack, digits, is_alive, wait_for

MINUTE = 60.0


def runners_of(stack: Stack, node: str) -> list[psutil.Process]:
    """All processes under an agent: its forkserver and the runners."""
    return psutil.Process(stack.pid_of(node)).children(recursive=True)


def test_a_node_in_a_federated_job(stack: Stack):
    job_id = stack.submit(digits(rounds=200, clients={"num": 2, "quorum": 0.5}))
    stack.wait_progress(job_id, 5)
    runners = runners_of(stack, "node-2")
    stack.kill("node-2")
    wait_for("the end of its runners", lambda: not any(map(is_alive, runners)), seconds=20)
    before = stack.job(job_id)["progress"]["done"]
    stack.wait_progress(job_id, before + 5, seconds=MINUTE)
    stack.wait_state(job_id, "finished", seconds=120)


def test_a_node_in_a_distributed_job(stack: Stack):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=300))
    wait_for("the first point", lambda: stack.get(f"/jobs/{job_id}/metrics", name="train/loss", points=10)["series"])
    runners = runners_of(stack, "node-2")
    stack.kill("node-2")
    wait_for("the end of its ranks", lambda: not any(map(is_alive, runners)), seconds=20)

    def second_attempt() -> bool:
        job = stack.job(job_id)
        assert job["state"] not in ENDED, job["state_reason"]
        return len(job["attempts"]) == 2 and job["state"] == "running"

    wait_for("a second attempt", second_attempt, seconds=MINUTE)
    first = min(stack.job(job_id)["attempts"], key=lambda a: a["number"])
    assert first["state"] == "failed"
    assert "node-" in first["state_reason"]


@pytest.mark.parametrize("name", ["conductor", "broker", "ingest", "web", "beat"])
def test_a_server_process_in_a_federated_job(stack: Stack, name: str):
    job_id = stack.submit(digits(rounds=150))
    stack.wait_progress(job_id, 5)
    stack.kill(name)
    stack.wait_healthy()
    before = stack.job(job_id)["progress"]["done"]
    stack.wait_progress(job_id, before + 5, seconds=MINUTE)
    job = stack.wait_state(job_id, "finished", seconds=120)
    assert job["progress"]["done"] == 150
    # Every point of every client is there once, whatever was delivered twice.
    curves = stack.get(f"/jobs/{job_id}/metrics", name="train/loss")["series"]
    for series in curves:
        if series["source"] != "aggregate":
            assert series["steps"] == sorted(set(series["steps"]))


@pytest.mark.parametrize("name", ["conductor", "broker", "ingest", "web"])
def test_a_server_process_in_a_distributed_job(stack: Stack, name: str):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=60))
    wait_for("the first point", lambda: stack.get(f"/jobs/{job_id}/metrics", name="train/loss", points=10)["series"])
    stack.kill(name)
    stack.wait_healthy()
    job = stack.wait_state(job_id, "finished", seconds=120)
    # A lost connection is no lost rank: nothing was trained twice.
    assert len(job["attempts"]) == 1


def test_a_conductor_between_the_rounds_again_and_again(stack: Stack):
    job_id = stack.submit(digits(rounds=100))
    for done in (5, 15, 25):
        stack.wait_progress(job_id, done)
        stack.kill("conductor")
    stack.wait_state(job_id, "finished", seconds=120)
    rounds = stack.items(f"/jobs/{job_id}/rounds")
    assert len({r["number"] for r in rounds}) == len(rounds)


def test_a_runner_alone(stack: Stack):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=100_000))
    wait_for("the first point", lambda: stack.get(f"/jobs/{job_id}/metrics", name="train/loss", points=10)["series"])
    own_group = [p for p in runners_of(stack, "node-1") if psutil.Process(p.pid).nice() is not None]
    busiest = max(own_group, key=lambda p: sum(p.cpu_times()[:2]))
    started = time.monotonic()
    busiest.kill()
    job = wait_for("the end of the attempt", lambda: (j := stack.job(job_id))["attempts"][0]["state"] == "failed" and j)
    assert time.monotonic() - started < MINUTE
    assert "node-1" in job["attempts"][0]["state_reason"] or "rank" in job["attempts"][0]["state_reason"]

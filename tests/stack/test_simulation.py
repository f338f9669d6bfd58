"""Simulations on real nodes: to the end, through a cancel, and through kill -9 of the node and of the conductor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load

from tests.realstack import Stack, digits, wait_for

ROUNDS = 120


def simulated(rounds: int = ROUNDS, **federated: Any) -> dict[str, Any]:
    """Thirty clients on one node, two processes; five a round. SCAFFOLD: its clients keep something, and so does the server."""
    clients = {"simulate": 30, "per_round": 5, "num": 1, "processes": 2}
    return digits(rounds=rounds, **{"strategy": {"name": "scaffold"}, "clients": clients, **federated})


def long(rounds: int = ROUNDS) -> dict[str, Any]:
    """A simulation that is at it for several packs of rounds, a second each."""
    return simulated(rounds, local_epochs=40)


def model_of(stack: Stack, job_id: int) -> dict[str, np.ndarray]:
    newest, *_ = stack.get(f"/jobs/{job_id}/artifacts")
    return load(stack.api.get(newest["url"].removeprefix("/api/v1")).content)


def numbers_of(stack: Stack, job_id: int) -> list[int]:
    return [round_["number"] for round_ in stack.items(f"/jobs/{job_id}/rounds")]


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_it_runs_to_its_end(stack: Stack):
    job_id = stack.submit(simulated(6))
    job = stack.wait_state(job_id, "finished", "failed")
    assert job["state"] == "finished", job["state_reason"]
    assert job["state_reason"] == "All 6 rounds closed."
    rounds = stack.items(f"/jobs/{job_id}/rounds")
    assert [round_["number"] for round_ in rounds] == [1, 2, 3, 4, 5, 6]
    assert {round_["simulation"]["num_clients"] for round_ in rounds} == {5}
    (losses,) = stack.get(f"/jobs/{job_id}/metrics", name="server/loss", source="aggregate")["series"]
    assert losses["steps"] == [1, 2, 3, 4, 5, 6]
    assert losses["values"] == [round_["metrics"]["server/loss"] for round_ in rounds]
    assert losses["values"][-1] < losses["values"][0]


ADAPTIVE = {"clip": {"name": "adaptive"}, "noise_multiplier": 0.3, "delta": 1e-2}
CHOICES = {
    "memory": {"server_optimizer": {"name": "yogi", "lr": 0.01}},
    "kept layers": {"strategy": {"name": "fedbn"}, "encoding": {"name": "int8"}},
    "residuals": {"strategy": {"name": "fedprox", "mu": 0.1}, "encoding": {"name": "top_k", "fraction": 0.1}},
    "attackers": {"aggregator": {"name": "krum", "attackers": 1, "select": 2}},
    "privacy": {"strategy": {"name": "fedavg"}, "privacy": ADAPTIVE, "clients": {"simulate": 30, "num": 1}},
    "a goal": {"stop": {"metric": "server/loss", "target": 100.0}},
}


def test_what_comes_of_any_choice_passes_the_door(stack: Stack):
    jobs = {}
    for name, choice in CHOICES.items():
        spec = simulated(3, **{"strategy": {"name": "fedavg"}, "evaluate_every": 2, **choice})
        spec["model"]["options"]["norm"] = "layer"
        jobs[name] = stack.submit(spec)
    ended = {name: stack.wait_state(job_id, "finished", "failed") for name, job_id in jobs.items()}
    reasons = {name: job["state_reason"] for name, job in ended.items()}
    stopped = reasons.pop("a goal")
    assert set(reasons.values()) == {"All 3 rounds closed."}, reasons
    assert stopped.startswith("Stopped after round 2 of 3: server/loss is ")
    facts = [round_["facts"] for round_ in stack.items(f"/jobs/{jobs['privacy']}/rounds")]
    assert sorted(fact["epsilon"] for fact in facts) == [fact["epsilon"] for fact in facts]
    assert len({fact["clip_norm"] for fact in facts}) == 3


def test_nodes_and_processes_make_no_difference(stack: Stack):
    models = []
    for num, processes in ((1, 1), (1, 2), (2, 1)):
        clients = {"simulate": 30, "per_round": 5, "num": num, "processes": processes}
        job_id = stack.submit(simulated(4, clients=clients))
        stack.wait_state(job_id, "finished")
        stack.wait_nodes()
        models.append(model_of(stack, job_id))
    assert_same(models[0], models[1])
    assert_same(models[0], models[2])


def test_virtual_clients_give_what_real_ones_give(stack: Stack):
    models = []
    for clients in ({"num": 2}, {"simulate": 2, "num": 1}):
        job_id = stack.submit(digits(rounds=4, clients=clients, server_optimizer={"name": "adam", "lr": 0.03}))
        stack.wait_state(job_id, "finished")
        models.append(model_of(stack, job_id))
    assert_same(*models)


@pytest.fixture(scope="module")
def undisturbed(running_stack: Stack) -> dict[str, np.ndarray]:
    """The final weights of a simulation that nothing happens to."""
    running_stack.wait_nodes()
    job_id = running_stack.submit(long())
    running_stack.wait_state(job_id, "finished", seconds=120)
    return model_of(running_stack, job_id)


def test_it_goes_on_after_its_node_was_killed(stack: Stack, undisturbed: dict[str, np.ndarray]):
    job_id = stack.submit(long())
    job = stack.wait_progress(job_id, 1)
    (held,) = job["attempts"][0]["assignments"]
    stack.kill(held["node"])
    job = stack.wait_state(job_id, "finished", seconds=120)
    assert len(job["attempts"]) == 2
    assert numbers_of(stack, job_id) == list(range(1, ROUNDS + 1))
    assert_same(model_of(stack, job_id), undisturbed)


def test_it_goes_on_while_processes_of_the_server_were_killed(stack: Stack, undisturbed: dict[str, np.ndarray]):
    job_id = stack.submit(long())
    stack.wait_progress(job_id, 1)
    for name in ("conductor", "web"):
        stack.kill(name)
    stack.wait_healthy()
    job = stack.wait_state(job_id, "finished", seconds=120)
    assert len(job["attempts"]) == 1  # a lost connection is no lost rank
    assert numbers_of(stack, job_id) == list(range(1, ROUNDS + 1))
    assert_same(model_of(stack, job_id), undisturbed)


def test_more_rounds_give_what_all_at_once_would_have(stack: Stack, undisturbed: dict[str, np.ndarray]):
    job_id = stack.submit(long(ROUNDS - 20))
    stack.wait_state(job_id, "finished", seconds=120)
    assert stack.post(f"/jobs/{job_id}/resume", {"rounds": 20}).status_code == 200
    stack.wait_state(job_id, "queued", "running")
    stack.wait_state(job_id, "finished", seconds=120)
    assert numbers_of(stack, job_id) == list(range(1, ROUNDS + 1))
    assert_same(model_of(stack, job_id), undisturbed)


def test_a_cancel_ends_it_within_seconds(stack: Stack):
    job_id = stack.submit(simulated(100_000))
    job = stack.wait_progress(job_id, 1)
    (held,) = job["attempts"][0]["assignments"]
    runners = psutil.Process(stack.pid_of(held["node"])).children(recursive=True)
    started = time.monotonic()
    assert stack.post(f"/jobs/{job_id}/cancel").status_code == 200
    wait_for("free slots", lambda: not stack.nodes()[held["node"]]["running_attempts"], seconds=5)
    assert time.monotonic() - started < 5
    job = stack.job(job_id)
    assert (job["state"], job["state_reason"]) == ("cancelled", "Cancelled by admin.")
    done = numbers_of(stack, job_id)
    assert done == list(range(1, job["progress"]["done"] + 1))
    assert len(runners) > 2

"""The strategies on real nodes, by the API: they learn, they remember, and a job goes on as if it had never ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load

from tests.realstack import Stack, digits, wait_for

SGD = {"training": {"optimizer": {"name": "sgd", "lr": 0.1}}}
NORM = {"model": {"name": "mlp", "options": {"hidden": [32], "norm": "layer"}}}
SKEWED = {"data": {"source": "digits", "partition": {"scheme": "dirichlet", "alpha": 0.3}}}
ALL_AT_ONCE = {
    "strategy": {"name": "fedprox", "mu": 0.01},
    "server_optimizer": {"name": "yogi", "lr": 0.03},
    "aggregator": {"name": "norm_bound", "max_norm": 5.0},
    "encoding": {"name": "top_k", "fraction": 0.2},
}
CHOICES: dict[str, dict[str, Any]] = {
    "scaffold": {"federated": {"strategy": {"name": "scaffold"}}, **SGD},
    "fednova": {"federated": {"strategy": {"name": "fednova"}}, **SGD},
    "qfedavg": {"federated": {"strategy": {"name": "qfedavg", "q": 0.2}}, **SGD},
    "fedbn": {"federated": {"strategy": {"name": "fedbn"}}, **NORM, **SGD},
    "fusion": {"federated": {"strategy": {"name": "fusion", "weights": [1, 3]}}, **SGD},
    "adam": {"federated": {"server_optimizer": {"name": "adam", "lr": 0.03}}, **SGD},
    "bfloat16": {"federated": {"encoding": {"name": "bfloat16"}}, **SGD},
    "int8": {"federated": {"encoding": {"name": "int8"}}, **SGD},
    "all at once": {"federated": ALL_AT_ONCE, **SGD},
    "private": {"federated": {"privacy": {"noise_multiplier": 0.01, "clip": {"name": "fixed", "norm": 5.0}}}, **SGD},
}


def spec_of(choice: str, **federated: Any) -> dict[str, Any]:
    """A job of `choice` on skewed rows, with options of the federated section besides."""
    given = CHOICES[choice]
    return digits() | SKEWED | given | {"name": choice, "federated": {**given["federated"], **federated}}


def run(stack: Stack, spec: dict[str, Any]) -> int:
    job_id = stack.submit(spec)
    stack.wait_state(job_id, "finished")
    stack.wait_nodes()
    return job_id


def model_of(stack: Stack, job_id: int) -> dict[str, np.ndarray]:
    """The weights of the newest model that the job left."""
    newest = max(stack.get(f"/jobs/{job_id}/artifacts"), key=lambda artifact: artifact["id"])
    return load(stack.api.get(f"/jobs/{job_id}/artifacts/{newest['id']}/download").content)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("choice", CHOICES)
def test_it_learns(stack: Stack, choice: str):
    job_id = run(stack, spec_of(choice, rounds=6))
    found = stack.get(f"/jobs/{job_id}/metrics", name="train/loss", source="aggregate")["series"]
    (losses,) = (series["values"] for series in found)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("choice", ["scaffold", "fedbn", "adam", "all at once"])
def test_more_rounds_end_where_one_run_would_have(stack: Stack, choice: str):
    """The weights, the server's memory, and what the clients keep: all is there, to the last bit."""
    whole = run(stack, spec_of(choice, rounds=4))
    parts = run(stack, spec_of(choice, rounds=2))
    assert stack.post(f"/jobs/{parts}/resume").status_code == 409
    resumed = stack.post(f"/jobs/{parts}/resume", {"rounds": 2})
    assert resumed.status_code == 200, resumed.text
    job = stack.wait_state(parts, "finished")
    assert job["progress"] == {"done": 4, "total": 4, "planned": 4, "unit": "rounds"}
    assert [round_["number"] for round_ in stack.items(f"/jobs/{parts}/rounds")] == [1, 2, 3, 4]
    stack.wait_nodes()
    assert same(model_of(stack, parts), model_of(stack, whole))


def test_a_killed_node_and_a_killed_conductor_change_no_bit_of_scaffold(stack: Stack):
    """A node that comes back trains its round again, from what it kept of the round before."""
    undisturbed = run(stack, spec_of("scaffold", rounds=60, clients={"num": 2, "quorum": 1.0}))
    job_id = stack.submit(spec_of("scaffold", rounds=60, clients={"num": 2, "quorum": 1.0}))
    stack.wait_progress(job_id, 5)
    stack.kill("conductor")
    stack.wait_progress(job_id, 20)
    runners = psutil.Process(stack.pid_of("node-2")).children(recursive=True)
    stack.kill("node-2")
    wait_for("the end of its runners", lambda: not any(p.is_running() and p.status() != "zombie" for p in runners))
    stack.wait_state(job_id, "finished", seconds=150)
    stack.wait_nodes()
    assert same(model_of(stack, job_id), model_of(stack, undisturbed))


def test_it_stops_at_its_target_and_the_model_is_on_every_node(stack: Stack):
    job_id = run(stack, spec_of("adam", rounds=500, stop={"metric": "test/accuracy", "target": 0.6}))
    job = stack.job(job_id)
    done = job["progress"]["done"]
    assert job["state_reason"].startswith(f"Stopped after round {done} of 500: test/accuracy is ")
    assert done < 100
    homes = [stack.home / "nodes" / name / "models" for name in ("node-1", "node-2")]

    def kept() -> bool:
        return all(Path(home / f"job-{job_id}.safetensors").exists() for home in homes)

    wait_for("the model on every node", kept)


def test_the_budget_ends_the_job_and_is_never_overspent(stack: Stack):
    privacy = {"noise_multiplier": 2.0, "max_epsilon": 6.0}
    job_id = run(stack, digits(rounds=50, privacy=privacy))
    reason = stack.job(job_id)["state_reason"]
    assert reason.endswith("one more round would spend more than the epsilon of 6 that privacy.max_epsilon allows.")
    spent = [round_["facts"]["epsilon"] for round_ in stack.items(f"/jobs/{job_id}/rounds")]
    assert spent == sorted(spent)
    assert 0 < spent[-1] <= 6.0
    answer = stack.post(f"/jobs/{job_id}/resume", {"rounds": 1})
    assert answer.status_code == 409
    assert "privacy.max_epsilon is 6" in answer.json()["detail"]

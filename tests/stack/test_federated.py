"""A federated job by the API, from the spec to the model in the researcher's hands."""

from __future__ import annotations

import json

from safetensors import safe_open

from tests.realstack import Stack, digits


def test_a_federated_job_runs_to_the_end(stack: Stack, tmp_path):
    job_id = stack.submit(digits(rounds=8, local_epochs=2))
    job = stack.wait_state(job_id, "finished")
    assert job["progress"] == {"done": 8, "total": 8, "planned": 8, "unit": "rounds"}

    rounds = stack.items(f"/jobs/{job_id}/rounds")
    assert [r["number"] for r in rounds] == list(range(1, 9))
    assert {r["state"] for r in rounds} == {"closed"}
    assert all([p["state"] for p in r["participations"]] == ["returned"] * 2 for r in rounds)


def test_the_curves_are_complete(stack: Stack):
    job_id = stack.submit(digits(rounds=6, local_epochs=2))
    stack.wait_state(job_id, "finished")
    found = stack.get(f"/jobs/{job_id}/metrics", name="train/loss")["series"]
    curves = {series["source"]: series for series in found}
    assert set(curves) == {"node-1", "node-2", "aggregate"}
    # A point for each local epoch of each client, and one a round for the aggregate.
    assert curves["node-1"]["steps"] == curves["node-2"]["steps"] == list(range(1, 13))
    assert curves["aggregate"]["steps"] == [2, 4, 6, 8, 10, 12]
    assert curves["aggregate"]["values"][-1] < curves["aggregate"]["values"][0]


def test_the_model_comes_home_with_its_spec(stack: Stack, tmp_path):
    job_id = stack.submit(digits(rounds=3))
    stack.wait_state(job_id, "finished")
    (artifact,) = stack.get(f"/jobs/{job_id}/artifacts")
    assert artifact["name"] == "model.safetensors"
    answer = stack.api.get(f"/jobs/{job_id}/artifacts/{artifact['id']}/download")
    file = tmp_path / "model.safetensors"
    file.write_bytes(answer.content)
    assert len(answer.content) == artifact["size_bytes"]
    with safe_open(file, framework="numpy") as model:
        spec = json.loads(model.metadata()["spec"])
        assert spec["federated"]["rounds"] == 3
        assert model.get_tensor(sorted(model.keys())[0]).dtype == "float32"


def test_the_final_model_reaches_every_node(stack: Stack):
    job_id = stack.submit(digits(rounds=2))
    stack.wait_state(job_id, "finished")
    stack.wait_nodes()
    copies = [stack.home / "nodes" / name / "models" / f"job-{job_id}.safetensors" for name in ("node-1", "node-2")]
    assert copies[0].read_bytes() == copies[1].read_bytes() != b""


def test_the_same_seed_gives_the_same_bits(stack: Stack):
    results = []
    for _ in range(2):
        job_id = stack.submit(digits(rounds=3))
        stack.wait_state(job_id, "finished")
        (artifact,) = stack.get(f"/jobs/{job_id}/artifacts")
        results.append(artifact["digest"])
        stack.wait_nodes()
    assert results[0] == results[1] != ""

"""A distributed job over the ranks of two nodes, by the API."""

from __future__ import annotations

import json

from safetensors import safe_open

from tests.realstack import Stack, digits

TRAIN_ROWS = 1797 - round(1797 * 0.2)
"""Rows of digits that are left after the default test fraction."""


def test_two_nodes_train_one_model(stack: Stack, tmp_path):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=4))
    stack.wait_state(job_id, "finished")

    curves = {s["source"]: s for s in stack.get(f"/jobs/{job_id}/metrics", name="train/loss")["series"]}
    assert set(curves) == {"rank 0", "rank 1"}
    num_steps = curves["rank 0"]["steps"][-1]
    assert curves["rank 0"]["steps"] == curves["rank 1"]["steps"] == list(range(1, num_steps + 1))
    # Four passes over half of the rows each, 32 at a time.
    assert num_steps == 4 * -(-TRAIN_ROWS // 2 // 32)

    (artifact,) = stack.get(f"/jobs/{job_id}/artifacts")
    (tmp_path / "model").write_bytes(stack.api.get(f"/jobs/{job_id}/artifacts/{artifact['id']}/download").content)
    with safe_open(tmp_path / "model", framework="numpy") as model:
        assert json.loads(model.metadata()["spec"])["distributed"]["epochs"] == 4


def test_it_learns(stack: Stack):
    job_id = stack.submit(digits("distributed", nodes=2, epochs=10))
    stack.wait_state(job_id, "finished")
    (accuracy,) = stack.get(f"/jobs/{job_id}/metrics", name="test/accuracy")["series"]
    assert accuracy["source"] == "rank 0"
    assert accuracy["values"][-1] > 0.9


def test_several_ranks_on_each_node(stack: Stack):
    job_id = stack.submit(digits("distributed", nodes=2, processes_per_node=2, epochs=1))
    stack.wait_state(job_id, "finished")
    sources = {s["source"] for s in stack.get(f"/jobs/{job_id}/metrics", name="train/loss")["series"]}
    assert sources == {"rank 0", "rank 1", "rank 2", "rank 3"}

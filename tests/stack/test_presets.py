"""The presets on real nodes: what the empty job list offers runs, whatever its strategy."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tests.realstack import Stack
from trainer.data.builtin import load_diabetes_table
from trainer.data.prepare import split_rows
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from webapp.jobs.presets import PRESETS

ON_TWO_NODES = [name for name, preset in PRESETS.items() if JobSpec.model_validate(preset.spec).num_nodes <= 2]


@pytest.mark.parametrize("name", ON_TWO_NODES)
def test_a_preset_runs_to_its_end(stack: Stack, name: str):
    spec = copy.deepcopy(PRESETS[name].spec)
    if spec["mode"] == "federated":
        spec["federated"]["rounds"] = 3
    else:
        spec["distributed"]["epochs"] = 2
    job_id = stack.submit(spec)
    job = stack.wait_state(job_id, "finished", "failed")
    assert job["state"] == "finished", job["state_reason"]
    assert [artifact["name"] for artifact in stack.get(f"/jobs/{job_id}/artifacts")] == ["model.safetensors"]


def test_the_linear_classifier_learns_on_real_nodes(stack: Stack):
    job_id = stack.submit(PRESETS["sgd-classifier"].spec)
    stack.wait_state(job_id, "finished")
    (series,) = stack.get(f"/jobs/{job_id}/metrics", name="test/accuracy", source="aggregate")["series"]
    assert series["values"][-1] > 0.95


def test_two_nodes_hold_one_sex_each(stack: Stack):
    """Both deal the rows alone, from the same seed: together they have each row once."""
    spec = copy.deepcopy(PRESETS["diabetes-regression"].spec)
    spec["data"]["partition"] = {"scheme": "column", "column": "sex"}
    spec["federated"]["rounds"] = 1
    job_id = stack.submit(spec)
    stack.wait_state(job_id, "finished")
    (only,) = stack.items(f"/jobs/{job_id}/rounds")
    rows, columns = split_rows(442, 0.2, 0)[0], BUILTIN_SOURCES["diabetes"].columns
    _, counts = np.unique(load_diabetes_table().x[rows, columns.index("sex")], return_counts=True)
    held = [participation["num_examples"] for participation in only["participations"]]
    assert held == sorted(counts, reverse=True)

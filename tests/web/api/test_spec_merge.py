"""What a clone with changes trains."""

from __future__ import annotations

from webapp.jobs.spec_merge import merge_spec

SPEC = {
    "name": "A",
    "mode": "federated",
    "model": {"name": "mlp", "options": {"hidden": [8, 8], "activation": "relu"}},
    "training": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}, "batch_size": 32},
    "federated": {"rounds": 3},
}


def test_no_change_is_the_same_spec():
    assert merge_spec(SPEC, {}) == SPEC


def test_a_deep_field_changes_alone():
    merged = merge_spec(SPEC, {"training": {"optimizer": {"lr": 0.5}}})
    assert merged["training"] == {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9}, "batch_size": 32}
    assert SPEC["training"]["optimizer"]["lr"] == 0.1


def test_lists_are_replaced():
    assert merge_spec(SPEC, {"model": {"options": {"hidden": [4]}}})["model"]["options"] == {
        "hidden": [4],
        "activation": "relu",
    }


def test_null_removes_a_field():
    assert merge_spec(SPEC, {"training": {"batch_size": None}})["training"] == {
        "optimizer": SPEC["training"]["optimizer"]
    }


def test_another_model_brings_none_of_the_old_options():
    assert merge_spec(SPEC, {"model": {"name": "linear"}})["model"] == {"name": "linear"}


def test_the_same_model_keeps_its_options():
    merged = merge_spec(SPEC, {"model": {"name": "mlp", "options": {"activation": "tanh"}}})
    assert merged["model"]["options"] == {"hidden": [8, 8], "activation": "tanh"}


def test_another_mode_drops_the_old_section():
    merged = merge_spec(SPEC, {"mode": "distributed", "distributed": {"epochs": 2}})
    assert "federated" not in merged
    assert merged["distributed"] == {"epochs": 2}


def test_a_section_that_one_asks_for_is_kept_to_be_refused():
    merged = merge_spec(SPEC, {"mode": "distributed", "federated": {"rounds": 4}})
    assert merged["federated"] == {"rounds": 4}

"""The form is the spec: every field is on it, explained, and what is typed comes back as the spec that it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from trainer.sections.federated import Federated
from trainer.spec import JobSpec
from webapp.jobs.form_nodes import Choice, Leaf, Toggle, leaves
from webapp.jobs.form_schema import sections
from webapp.jobs.form_values import raw_spec, text_of, values_of
from webapp.jobs.form_words import algorithm_of
from webapp.jobs.presets import PRESETS

FIELDS = [node for section in sections() for node in leaves(section.nodes)]


def _spec_paths(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        parts = _models_in(field.annotation)
        for part in parts:
            yield from _spec_paths(part, (*path, name))
        if not parts:
            yield (*path, name)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def test_every_field_of_the_spec_is_on_the_form():
    fields = [node for node in FIELDS if not isinstance(node, Toggle)]
    on_form = {(*node.path, node.tag) if isinstance(node, Choice) else node.path for node in fields}
    assert on_form == set(_spec_paths(JobSpec))


SPECIAL = {"source", "server_data", "nodes"}


@pytest.mark.parametrize("node", FIELDS, ids=lambda node: node.name)
def test_every_field_has_a_title_and_help(node):
    assert node.title
    if isinstance(node, Leaf):
        assert node.help
        assert node.widget in {"text", "number", "select", "segments", "switch", "list"} | SPECIAL
    elif isinstance(node, Toggle):
        assert node.help
    else:
        assert all(about for about, _ in node.variants.values())


def test_names_of_inputs_are_unique():
    names = [node.name for node in FIELDS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PRESETS)
def test_a_spec_goes_through_the_form_unchanged(name):
    spec = JobSpec.model_validate(PRESETS[name].spec)
    values = values_of(spec.model_dump(mode="json", exclude_none=True))
    assert JobSpec.model_validate(raw_spec(values)) == spec


WHOLE = {
    "name": "All of it",
    "mode": "federated",
    "model": {"name": "cnn", "options": {"channels": [4], "norm": "group"}},
    "data": {"source": "digits"},
    "federated": {
        "rounds": 1,
        "strategy": {"name": "one_shot", "weights": [0.5, 1, 2.25, 1e-3, 0]},
        "server_optimizer": {"name": "sgd", "lr": 1.0},
        "clients": {"num": 5, "per_round": 4, "nodes": ["a-1", "b", "c", "d", "e"]},
        "encoding": {"name": "top_k", "fraction": 0.25},
        "stop": {"metric": "test/accuracy", "target": 0.9, "patience": 3, "min_delta": 0.001},
        "evaluate_every": 2,
    },
}
PRIVATE = {
    **WHOLE,
    "federated": {
        "clients": {"num": 40},
        "privacy": {"clip": {"name": "adaptive", "quantile": 0.25}, "max_epsilon": 8, "delta": 1e-6},
    },
}


@pytest.mark.parametrize("raw", [WHOLE, PRIVATE], ids=["whole", "private"])
def test_sections_that_may_be_left_out_and_lists_go_through_the_form(raw):
    spec = JobSpec.model_validate(raw)
    assert JobSpec.model_validate(raw_spec(values_of(spec.model_dump(mode="json", exclude_none=True)))) == spec


@pytest.mark.parametrize("said", ["off", None])
def test_a_section_that_is_switched_off_is_not_in_the_spec(said):
    values = values_of(JobSpec.model_validate(PRIVATE).model_dump(mode="json", exclude_none=True))
    values = (
        {**values, "federated.privacy": said} if said else {k: v for k, v in values.items() if k != "federated.privacy"}
    )
    assert "privacy" not in raw_spec(values)["federated"]


def test_a_section_that_is_switched_on_and_left_empty_has_its_defaults():
    raw = raw_spec({"mode": "federated", "federated.privacy": "on", "federated.privacy.delta": ""})
    assert raw["federated"]["privacy"] == {"clip": {"name": "fixed"}}


def test_registered_names_read_as_the_papers_have_them():
    choices = {node.name: dict(node.choices) for node in FIELDS if isinstance(node, Choice)}
    strategies = choices["federated.strategy.name"]
    assert (strategies["scaffold"], strategies["qfedavg"], strategies["fedbn"]) == ("SCAFFOLD", "q-FedAvg", "FedBN")
    assert choices["federated.server_optimizer.name"]["adam"] == "Adam (FedAdam)"
    assert choices["training.optimizer.name"]["adam"] == "Adam"
    metric = next(node for node in FIELDS if node.name == "federated.stop.metric")
    assert ("test/loss", "test/loss") in metric.choices


@pytest.mark.parametrize(
    ("federated", "name"),
    [
        ({}, "FedAvg"),
        ({"server_optimizer": {"name": "sgd", "momentum": 0.9}}, "FedAvgM"),
        ({"server_optimizer": {"name": "adagrad"}}, "FedAdagrad"),
        ({"server_optimizer": {"name": "yogi"}, "strategy": {"name": "fedprox"}}, "FedProx with FedYogi"),
        ({"aggregator": {"name": "median"}, "clients": {"num": 3}}, "FedAvg, coordinate median"),
        ({"aggregator": {"name": "krum"}, "clients": {"num": 9}}, "FedAvg, Krum"),
        ({"aggregator": {"name": "krum", "select": 3}, "clients": {"num": 9}}, "FedAvg, Multi-Krum"),
        ({"aggregator": {"name": "bulyan"}, "clients": {"num": 9}}, "FedAvg, Bulyan"),
    ],
)
def test_a_combination_is_called_what_the_papers_call_it(federated, name):
    assert algorithm_of(Federated.model_validate(federated)) == name


def test_limits_and_units_are_those_of_the_spec():
    by_name = {node.name: node for node in FIELDS}
    assert by_name["training.optimizer:sgd.lr"].limits == "above 0, at most 100"
    assert by_name["federated.rounds"].limits == "1 to 100,000"
    assert by_name["federated.strategy:fusion.weights"].limits == "0 to 1,000,000"
    assert by_name["federated.clients.per_round"].limits == "1 to 100,000"
    assert by_name["federated.stop.patience"].unit == "rounds"
    assert by_name["federated.privacy.delta"].limits == "above 0, below 0.1"
    deadline = by_name["federated.round_deadline_seconds"]
    assert (deadline.title, deadline.unit, deadline.default) == ("Round deadline", "s", 600)


def test_help_calls_a_choice_what_the_form_calls_it():
    by_name = {node.name: node for node in FIELDS}
    assert by_name["training.loss"].help.startswith("Auto: cross-entropy")
    assert ". Distributed: ranks" in by_name["mode"].help


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("0.1", 0.1),
        (" 3 ", 3),
        ("1e-3", 0.001),
        ("1_000", "1_000"),
        ("٣", "٣"),
        ("nan", "nan"),
        ("0,1", "0,1"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_only_what_one_writes_as_a_number_is_one(text, read):
    raw = raw_spec({"mode": "federated", "training.optimizer:sgd.lr": text})
    assert raw["training"]["optimizer"]["lr"] == read


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (1e-5, "1e-5"), (2.5e-10, "2.5e-10"), (1e16, "10000000000000000"), ([0.5, 1.0], "0.5, 1")],
)
def test_numbers_stand_as_one_writes_them(value, text):
    assert text_of(value) == text


def test_lists_are_read_item_by_item():
    values = {
        "mode": "federated",
        "model.name": "mlp",
        "model:mlp.options.hidden": "200, x 64,",
        "resources.node_labels": "gpu, 1",
    }
    raw = raw_spec(values)
    assert raw["model"]["options"]["hidden"] == [200, "x", 64]
    assert raw["resources"]["node_labels"] == ["gpu", "1"]

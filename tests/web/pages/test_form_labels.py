"""What does not go together is said with the form's own labels, and in YAML with paths: one sentence for both."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import sections as package
from trainer import sources, spec
from trainer.sections.disagreement import Disagreement, plain, rooted
from webapp.jobs.form_labels import labelled
from webapp.jobs.form_nodes import Choice, Leaf, leaves
from webapp.jobs.form_schema import sections
from webapp.jobs.form_values import values_of
from webapp.jobs.forms import SpecForm
from webapp.jobs.selectors import check_spec
from webapp.jobs.spec_problems import parse_spec

SECTIONS = Path(package.__path__[0])
ROOTS = {"federated_checks.py": "federated", "federated.py": "federated.stop", "training.py": "training.optimizer"}
"""File -> section whose checks it holds; all others check the whole spec."""
FILES = [*sorted(SECTIONS.glob("*.py")), Path(spec.__file__), Path(sources.__file__)]

MNIST = {"name": "x", "mode": "federated", "model": {"name": "mlp"}, "data": {"source": "digits"}}
KRUM = {"aggregator": {"name": "krum"}, "clients": {"num": 4}}
SIMULATED = {"clients": {"simulate": 10}}
SECURE = {"clients": {"num": 5}, "secure_aggregation": {}}
BUFFER = {"strategy": {"name": "fedbuff"}}


def said(federated: dict, **more: object) -> str:
    """The one sentence that the form says."""
    raw = {**MNIST, **more, "federated": federated}
    problems = parse_spec(raw)
    assert isinstance(problems, list)
    form = SpecForm(values_of(raw), problems)
    bound = [field for section in form.sections for field in _all(section.fields)]
    (sentence,) = [*form.errors, *(error for s in form.sections for error in s.errors)] + [
        error for field in bound for error in field.errors
    ]
    return sentence


def _all(fields) -> Iterator:
    for field in fields:
        yield field
        yield from _all(field.fields)


@pytest.mark.parametrize(
    ("federated", "sentence"),
    [
        (
            {"strategy": {"name": "scaffold"}, "encoding": {"name": "int8"}},
            "SCAFFOLD's control variates travel as they are: set “Update encoding” to float32 (as they are).",
        ),
        (
            {"aggregator": {"name": "median"}},
            "The median of 2 updates is their mean, and protects from nobody: draw at least 3 clients a round, or set "
            "“Aggregator” to Weighted mean.",
        ),
        (
            KRUM,
            "Krum with 1 attacker needs at least 5 clients a round, and 4 clients are drawn: draw more, or lower “Attackers”.",
        ),
        (
            {"clients": {"num": 1, "per_round": 2}},
            "“Clients drawn each round” is 2, and the job has 1 client: lower it, or raise “Number of nodes”.",
        ),
        (
            {"clients": {"num": 2, "nodes": ["a"]}},
            "“Only these nodes” names 1 node, and the job needs 2: name more, or lower “Number of nodes”.",
        ),
        (
            {**SIMULATED, **BUFFER},
            "A simulation trains round by round, and FedBuff does not wait for rounds: choose another “Strategy”, or leave "
            "“Simulated clients” empty.",
        ),
        (
            {**SIMULATED, "stop": {"metric": "test/loss", "patience": 2}},
            "Simulated clients do not measure test rows one by one: set “Metric” to server/loss.",
        ),
        (
            {**SECURE, "aggregator": {"name": "krum"}},
            "With secure aggregation nobody sees a single update, and Krum, Multi-Krum compares them one by one: set "
            "“Aggregator” to Weighted mean, or switch “Secure aggregation” off.",
        ),
        (
            {"clients": {"num": 10}, "privacy": {"clip": {"name": "adaptive"}}},
            "The adaptive clip counts the short updates, and with 10 clients a round the count gives away more than “Noise "
            "multiplier” 1 allows: set the multiplier below 1, draw more than 10 clients, or set “Clip” to Fixed.",
        ),
        (
            {"stop": {}},
            "Early stopping needs a goal: set “Patience”, “Target” or both.",
        ),
    ],
)
def test_the_form_says_labels_and_choices(federated, sentence):
    assert said(federated) == sentence


def test_a_check_over_sections_says_them_too():
    adam = {"optimizer": {"name": "adam"}}
    assert said({"strategy": {"name": "qfedavg"}}, training=adam) == (
        "The strategy q-FedAvg is defined for clients that train with plain steps: set “Optimizer” to SGD, or choose another "
        "“Strategy”."
    )


@pytest.mark.parametrize(
    ("federated", "loc", "sentence"),
    [
        (
            {"strategy": {"name": "scaffold"}, "encoding": {"name": "int8"}},
            ("federated", "encoding"),
            "SCAFFOLD's control variates travel as they are: set encoding to float32.",
        ),
        (
            {**SECURE, "strategy": {"name": "qfedavg"}},
            ("federated", "strategy"),
            "q-FedAvg weighs by the length of each single update, which secure aggregation hides: choose another strategy, "
            "or switch secure_aggregation off.",
        ),
    ],
)
def test_yaml_keeps_its_names(federated, loc, sentence):
    (problem,) = parse_spec({**MNIST, "federated": federated})
    assert (problem.loc, problem.message) == (loc, sentence)


def test_marks():
    marked = "set `encoding` to `encoding=float32`, or `clients.num`"
    assert plain(marked) == "set encoding to float32, or clients.num"
    assert rooted("federated", marked) == (
        "set `federated.encoding` to `federated.encoding=float32`, or `federated.clients.num`"
    )
    assert rooted("", marked) == marked
    assert str(Disagreement(marked)) == plain(marked)
    assert labelled("`no.such.field` and `no.such.field=value`, `a b`") == "no.such.field and value, `a b`"


def _marks() -> Iterator[tuple[str, str]]:
    """(path from the top, value) of each mark in what checks say; where it is put in as they run, the value is empty."""
    for file in FILES:
        calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call | ast.Return))
        parts = (part for call in calls for part in ast.walk(call))
        for text in {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}:
            for path, value in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)(?:=([a-z_0-9/]*))?", text):
                yield f"{ROOTS[file.name]}.{path}" if file.name in ROOTS else path, value


def test_checks_name_fields_and_choices_that_are_there():
    fields = [node for section in sections() for node in leaves(section.nodes)]
    paths = {".".join(node.path) for node in fields}
    choosers = [node for node in fields if isinstance(node, Choice | Leaf)]
    choices = {(".".join(node.path), value) for node in choosers for value, _ in node.choices}
    marks = set(_marks())
    assert len(marks) > 50
    assert {path for path, _ in marks} <= paths
    assert {mark for mark in marks if mark[1]} <= choices


def test_every_check_is_a_disagreement():
    """A plain ValueError would show names of the spec in the form."""
    for file in SECTIONS.glob("*.py"):
        assert "raise ValueError" not in file.read_text(), file.name


def test_a_budget_too_small_for_one_round_is_said_in_labels(team):
    raw = {**MNIST, "federated": {"clients": {"num": 10}, "privacy": {"max_epsilon": 0.5}}}
    problems = check_spec(team=team, raw=raw)
    assert isinstance(problems, list)
    (bound,) = [field for s in SpecForm(values_of(raw), problems).sections for field in _all(s.fields) if field.errors]
    assert bound.node.name == "federated.privacy.max_epsilon"
    assert bound.errors[0].endswith("and “Max epsilon” is 0.5: raise it, or raise “Noise multiplier”.")

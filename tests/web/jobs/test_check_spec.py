"""Bad specs: each gets a sentence at its field, before anyone is bothered."""

import os
import subprocess
import sys

import pytest

from tests.web.jobs.far_end import FEDERATED
from trainer.sources import SourceSchema
from trainer.spec import JobSpec
from webapp.jobs.selectors import check_spec

pytestmark = pytest.mark.django_db

GOOD = FEDERATED.model_dump(mode="json", exclude_none=True)


def problems(team, **changes) -> dict[tuple, str]:
    found = check_spec(team=team, raw={**GOOD, **changes})
    return {} if isinstance(found, JobSpec) else {p.loc: p.message for p in found}


def test_a_good_spec_comes_back(team):
    assert check_spec(team=team, raw=GOOD) == FEDERATED


CASES = [
    ({"nam": "x"}, ("nam",), "There is no field 'nam' here. Did you mean 'name'?"),
    ({"name": ""}, ("name",), "'name' has 1 to 120 characters, and this one has 0."),
    ({"name": "x" * 10_000}, ("name",), "'name' has 1 to 120 characters, and this one has 10,000."),
    ({"name": None}, ("name",), "'name' is a text, not None."),
    ({"seed": -1}, ("seed",), "'seed' is a whole number from 0 to 2,147,483,647, not -1."),
    ({"mode": "fed"}, ("mode",), "'mode' is federated or distributed, not 'fed'."),
    ({"model": {"name": "mpl"}}, ("model", "name"), "'name' is cnn, linear or mlp, not 'mpl'. Did you mean 'mlp'?"),
    (
        {"federated": {"stop": {"target": float("nan")}}},
        ("federated", "stop", "target"),
        "'target' is a number, not nan.",
    ),
    (
        {"federated": {"stop": {"metric": "test/r2", "patience": 3}}},
        ("federated", "stop", "metric"),
        "'digits' is a classification, which has no test/r2: choose test/accuracy or test/loss.",
    ),
    ({"model": {}}, ("model", "name"), "'name' is missing: choose cnn, linear or mlp."),
    ({"model": 3}, ("model",), "'model' is a section with fields of its own (name), not 3."),
    (
        {"model": {"name": "mlp", "options": {"channels": [3]}}},
        ("model", "options", "channels"),
        "There is no field 'channels' here. There are: hidden, activation and norm.",
    ),
    (
        {"model": {"name": "mlp", "options": {"hidden": [0]}}},
        ("model", "options", "hidden", 0),
        "'hidden' is a whole number from 1 to 65,536, not 0.",
    ),
    (
        {"model": {"name": "mlp", "options": {"hidden": []}}},
        ("model", "options", "hidden"),
        "'hidden' has 1 to 32 entries, and this one has 0.",
    ),
    (
        {"data": {"source": "digits", "partition": {"scheme": "dirichlet", "alpha": 0}}},
        ("data", "partition", "alpha"),
        "'alpha' is a number above 0 and at most 1,000, not 0.",
    ),
    (
        {"training": {"optimizer": {"name": "sgd", "nesterov": True}}},
        ("training", "optimizer", "momentum"),
        "Nesterov needs a momentum above 0: set momentum, for example to 0.9.",
    ),
    (
        {"distributed": {}},
        ("mode",),
        "This job is federated: remove the section 'distributed', or change mode to distributed.",
    ),
    (
        {"data": {"source": "../etc/passwd"}},
        ("data", "source"),
        "'source' begins with a small letter or a digit, and goes on with these, '_', '.' or '-'; '../etc/passwd' does not.",
    ),
    (
        {"data": {"source": "scans"}},
        ("data", "source"),
        "No data source 'scans' is known to Cardiology. There are: 'digits', 'breast_cancer', 'diabetes'.",
    ),
    (
        {"model": {"name": "cnn"}, "data": {"source": "diabetes"}},
        ("model", "name"),
        "A cnn needs images, and 'diabetes' is a table of 10 columns: choose mlp or linear.",
    ),
]


@pytest.mark.parametrize(("changes", "loc", "sentence"), CASES, ids=[str(c[1]) + c[2][:30] for c in CASES])
def test_each_mistake_is_said_at_its_field(team, changes, loc, sentence):
    assert problems(team, **changes) == {loc: sentence}


def test_all_mistakes_are_said_at_once(team):
    found = problems(
        team, seed="x", federated={"rounds": 0, "clients": {"fraction": 2}}, resources={"node_labels": ["a b"]}
    )
    assert set(found) == {
        ("seed",),
        ("federated", "rounds"),
        ("federated", "clients", "fraction"),
        ("resources", "node_labels", 0),
    }


def test_a_nodes_own_source_is_known_to_its_teams_only(team, owner, stranger, make_node):
    scans = SourceSchema(name="scans", task="classification", shape=(4,), num_rows=50, num_classes=2)
    far = make_node("node-1", sources=(scans,))
    assert problems(team, data={"source": "scans"}) == {}
    far.node.teams.add(stranger.teams.get())
    assert ("data", "source") in problems(team, data={"source": "scans"})


def test_too_few_nodes_is_no_mistake(team):
    assert problems(team, federated={"clients": {"num": 500}}) == {}


@pytest.mark.parametrize("module", ["webapp.jobs.services", "webapp.jobs.selectors", "webapp.urls", "webapp.asgi"])
def test_a_web_process_pays_for_no_torch(module):
    code = f"import django; django.setup(); import sys, {module}; assert 'torch' not in sys.modules"
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

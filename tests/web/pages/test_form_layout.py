"""The form's cards and its switches: what stands together, and what a switch begins with."""

from __future__ import annotations

import pytest

from tests.conftest import browser_of
from tests.web.pages.test_new_job import CHECK, typed
from trainer.spec import JobSpec
from webapp.jobs.form_layout import cut
from webapp.jobs.form_nodes import Leaf, Section, leaves
from webapp.jobs.form_schema import sections
from webapp.jobs.form_values import raw_spec, values_of

CLONED = {"name": "x", "mode": "federated", "model": {"name": "mlp"}, "data": {"source": "digits"}}


def test_the_federated_section_is_cut_into_cards():
    cards = {s.title: [node.name for node in s.nodes] for s in sections() if s.only_in == "federated"}
    assert list(cards) == ["Rounds", "Algorithm", "Clients", "Privacy"]
    assert cards["Privacy"] == ["federated.secure_aggregation", "federated.privacy", "federated.local_privacy"]
    assert cards["Clients"][:2] == ["federated.clients.simulation", "federated.clients.num"]


def test_a_field_that_no_card_names_stands_on_the_first():
    (leaf,) = (node for s in sections() for node in leaves(s.nodes) if node.name == "federated.rounds")
    assert isinstance(leaf, Leaf)
    new = Leaf(**{**vars(leaf), "path": ("federated", "new"), "name": "federated.new"})
    nodes = tuple(node for s in sections() if s.only_in == "federated" and s.title != "Clients" for node in s.nodes)
    clients = next(s for s in sections() if s.title == "Clients")
    group = Section(clients.path, clients.title, "", clients.nodes)
    whole = Section(("federated",), "Federated", "", (*nodes, group, new), "federated")
    assert new in cut(whole)[0].nodes


@pytest.mark.parametrize("switch", ["secure_aggregation", "privacy", "local_privacy"])
def test_each_kind_of_privacy_says_from_whom_it_protects(switch):
    node = next(node for s in sections() for node in leaves(s.nodes) if node.name == f"federated.{switch}")
    assert node.help.startswith("Protects each ")


def test_early_stop_is_valid_as_soon_as_it_is_switched_on(owner):
    answer = browser_of(owner).post(CHECK, typed(federated__stop="on"))
    assert answer.context["is_ready"]
    page = answer.content.decode()
    assert 'name="federated.stop.patience" value="5"' in page
    assert "patience: 5" in page


def test_what_was_emptied_stays_empty(owner):
    changes = {"federated.stop": "on", "federated.stop.patience": "", "federated.stop.target": "0.5"}
    page = browser_of(owner).post(CHECK, {**typed(), **changes}).content.decode()
    assert 'name="federated.stop.patience" value=""' in page
    assert "patience" not in raw_spec({**typed(), **changes})["federated"]["stop"]


def test_a_clone_with_a_target_alone_gets_no_patience():
    spec = JobSpec.model_validate({**CLONED, "federated": {"stop": {"target": 0.5}}})
    values = values_of(spec.model_dump(mode="json", exclude_none=True))
    assert JobSpec.model_validate(raw_spec(values)) == spec


def test_the_simulation_is_a_switch_that_begins_with_a_hundred_clients(owner):
    browser = browser_of(owner)
    closed = browser.post(CHECK, typed(federated__clients__simulate="30")).content.decode()
    assert 'id="f-federated-clients-simulate"' not in closed
    assert "simulate" not in raw_spec(typed(federated__clients__simulate="30"))["federated"]["clients"]
    opened = typed(federated__clients__simulation="on", federated__clients__num="1")
    page = browser.post(CHECK, opened).content.decode()
    assert 'name="federated.clients.simulate" value="100"' in page
    assert raw_spec(opened)["federated"]["clients"] == {"num": 1, "simulate": 100}


def test_a_simulation_goes_through_the_form():
    spec = JobSpec.model_validate({**CLONED, "federated": {"clients": {"simulate": 30, "processes": 1}}})
    values = values_of(spec.model_dump(mode="json", exclude_none=True))
    assert values["federated.clients.simulation"] == "on"
    assert JobSpec.model_validate(raw_spec(values)) == spec


def test_the_side_leads_to_each_field_to_correct(owner):
    changes = {"training.optimizer:sgd.lr": "-1", "federated.aggregator.name": "median"}
    page = browser_of(owner).post(CHECK, {**typed(), **changes}).content.decode()
    # One section at a time: pydantic checks what goes together only where each field by itself is right.
    assert 'To correct: <a href="#f-training-optimizer-sgd-lr-field">Learning rate</a>' in page
    page = browser_of(owner).post(CHECK, {**typed(), **changes, "training.optimizer:sgd.lr": "1"}).content.decode()
    assert 'To correct: <a href="#f-federated-aggregator-name-field">Aggregator</a></p>' in page
    assert 'id="f-federated-aggregator-name-field"' in page

from __future__ import annotations

import re

import pytest
from django.urls import reverse

from tests.conftest import browser_of
from tests.web.pages.conftest import enrol
from trainer.sources import BUILTIN_SOURCES, SpecProblem
from trainer.spec import JobSpec
from webapp.jobs.form_summary import shortage, traffic
from webapp.jobs.form_values import values_of
from webapp.jobs.forms import SpecForm
from webapp.jobs.models import Job
from webapp.jobs.presets import PRESETS
from webapp.jobs.selectors import check_spec
from webapp.teams import services

URL = "/jobs/new/"
CHECK = "/jobs/new/check/"


def typed(preset: str = "digits-federated", **changes: str) -> dict[str, str]:
    """What the browser sends for a preset; `__` in a name stands for `.`."""
    values = values_of(PRESETS[preset].spec)
    return {**values, "submission_key": "once", **{key.replace("__", "."): value for key, value in changes.items()}}


def error_at(page: str, name: str) -> str:
    """The sentence that stands at the input called `name`."""
    field = "f-" + name.replace(".", "-").replace(":", "-")
    found = re.search(rf'id="{field}-error"[^>]*><svg.*?</svg>(.*?)</p>', page, re.S)
    return found.group(1) if found else ""


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_spec_that_can_run(name, team):
    assert isinstance(check_spec(team=team, raw=PRESETS[name].spec), JobSpec)


def test_a_job_is_made_of_what_was_typed(owner, team):
    answer = browser_of(owner).post(URL, typed(federated__rounds="7"))
    job = Job.objects.get()
    assert answer["Location"] == reverse("job-page", args=[job.pk])
    assert job.spec == JobSpec.model_validate(
        {
            **PRESETS["digits-federated"].spec,
            "federated": {**PRESETS["digits-federated"].spec["federated"], "rounds": 7},
        }
    )


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("name", ""),
        ("name", "x" * 10_000),
        ("seed", "-1"),
        ("federated.rounds", "many"),
        ("federated.rounds", "0"),
        ("federated.clients.quorum", "1.5"),
        ("training.optimizer:sgd.lr", "nan"),
        ("training.batch_size", "2.5"),
        ("model:mlp.options.hidden", "200, -3"),
        ("model:mlp.options.hidden", ","),
        ("data.source", "../etc/passwd"),
        ("data.source", "no_such_source"),
        ("training.loss", "mse"),
        ("resources.node_labels", "a, b c, <script>"),
    ],
)
def test_an_error_stands_at_its_field_and_nothing_typed_is_lost(field, text, owner):
    answer = browser_of(owner).post(URL, {**typed(), field: text})
    page = answer.content.decode()
    assert answer.status_code == 422
    assert error_at(page, field)
    assert not Job.objects.exists()
    bound = {f.node.name: f for section in answer.context["form"].sections for f in _all(section.fields)}
    assert bound[field].value == text
    assert "<script>" not in page


def test_an_error_over_several_options_stands_at_the_first_that_it_names(owner):
    values = {**typed(), "training.optimizer:sgd.nesterov": "on", "training.optimizer:sgd.momentum": "0"}
    page = browser_of(owner).post(URL, values).content.decode()
    assert "set “Momentum”, for example to 0.9" in error_at(page, "training.optimizer:sgd.momentum")


def test_a_model_that_does_not_fit_the_data_is_said_before_any_node_is_asked(owner):
    values = {**typed("non-iid-cnn"), "data.source": "diabetes"}
    page = browser_of(owner).post(URL, values).content.decode()
    assert "A CNN needs images" in error_at(page, "model.name")


def test_an_unknown_choice_is_an_error_not_a_crash(owner):
    answer = browser_of(owner).post(URL, {**typed(), "model.name": "transformer"})
    assert answer.status_code == 422
    assert error_at(answer.content.decode(), "model.name")


def test_while_one_types_the_missing_name_is_no_error_yet(owner):
    answer = browser_of(owner).post(CHECK, typed(name=""))
    assert answer.status_code == 200
    assert error_at(answer.content.decode(), "name") == ""


def test_while_one_types_errors_and_the_summary_come_at_once(owner):
    browser = browser_of(owner)
    assert error_at(browser.post(CHECK, typed(seed="-1")).content.decode(), "seed")
    answer = browser.post(CHECK, typed())
    assert ("Data", "1,438 rows to train on, 359 to test on") in answer.context["summary"]
    assert ("Rounds", "20 × 1 local epoch") in answer.context["summary"]


def test_another_choice_shows_its_own_options_and_keeps_the_old_ones(owner):
    values = {**typed(), "training.optimizer.name": "adam", "training.optimizer:sgd.lr": "0.123"}
    page = browser_of(owner).post(CHECK, values).content.decode()
    assert 'name="training.optimizer:adam.beta1"' in page
    assert '<input type="hidden" name="training.optimizer:sgd.lr" value="0.123">' in page


def test_another_mode_shows_its_own_section(owner):
    page = browser_of(owner).post(CHECK, typed(mode="distributed")).content.decode()
    assert 'name="distributed.epochs"' in page
    assert 'id="f-federated-rounds"' not in page
    # Partitions are of federated jobs only.
    assert 'id="f-data-partition-scheme"' not in page


def test_sent_twice_it_is_one_job(owner):
    browser = browser_of(owner)
    first = browser.post(URL, typed())
    again = browser.post(URL, typed())
    assert first["Location"] == again["Location"]
    assert Job.objects.count() == 1


def test_gone_back_to_and_changed_it_is_another_job(owner):
    browser = browser_of(owner)
    browser.post(URL, typed())
    browser.post(URL, typed(seed="1"))
    assert sorted(job.spec.seed for job in Job.objects.all()) == [0, 1]


def test_a_clone_is_filled_in_and_remembers_where_it_came_from(job, owner):
    browser = browser_of(owner)
    page = browser.get(f"{URL}?clone={job.pk}").content.decode()
    assert f'<input type="hidden" name="clone" value="{job.pk}">' in page
    assert 'value="Digits, federated"' in page
    browser.post(URL, typed(clone=str(job.pk), seed="1"))
    assert Job.objects.latest("id").cloned_from == job


@pytest.mark.parametrize("clone", ["no-number", "9" * 40])
def test_a_clone_of_what_is_not_there(clone, owner):
    assert browser_of(owner).get(f"{URL}?clone={clone}").status_code == 404


def test_a_stranger_cannot_clone(job, stranger):
    browser = browser_of(stranger)
    assert browser.get(f"{URL}?clone={job.pk}").status_code == 404
    assert browser.post(URL, typed(clone=str(job.pk))).status_code == 404


def test_a_viewer_is_told_whom_to_ask(owner, teammate, team):
    # What the teammate may do is nothing that the viewer may.
    team.memberships.filter(user=owner).update(role="viewer")
    answer = browser_of(owner).get(URL)
    assert answer.status_code == 403
    assert "ask a maintainer" in answer.content.decode()
    assert "New job" not in browser_of(owner).get("/jobs/").content.decode()


def test_an_administrators_own_team_is_the_default(admin, team):
    own = services.create_team(name="Zoology")
    services.add_member(team=own, user=admin, role="member", actor=admin)
    answer = browser_of(admin).get(URL)
    assert [offered.name for offered in answer.context["teams"]] == ["Zoology", "Cardiology"]
    assert answer.context["team"] == own


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("name", " ", "Give the job a name."),
        ("name", "x" * 130, "1 to 120 characters, and this one has 130."),
        ("training.optimizer:sgd.lr", "-1", "A number above 0 and at most 100, not -1."),
        ("model:mlp.options.hidden", "200, -3", "A whole number from 1 to 65,536, not -3."),
    ],
)
def test_a_sentence_under_a_label_names_no_key_of_the_spec(field, text, said, owner):
    assert error_at(browser_of(owner).post(URL, {**typed(), field: text}).content.decode(), field) == said


@pytest.mark.parametrize(
    ("name", "text"), [("name", ""), ("data.source", "no_such"), ("mode", "both"), ("model.name", "transformer")]
)
def test_a_wrong_field_of_any_kind_names_its_sentence(name, text, owner):
    page = browser_of(owner).post(URL, {**typed(), name: text}).content.decode()
    error = "f-" + name.replace(".", "-") + "-error"
    assert f'aria-invalid="true" aria-errormessage="{error}"' in page
    assert page.count(f'id="{error}"') == 1


@pytest.mark.parametrize(
    ("num_online", "said"),
    [
        (0, "It would wait: it needs 7 nodes at once, and none is online."),
        (2, "It would wait: it needs 7 nodes at once, and 2 are online."),
        (7, ""),
    ],
)
def test_a_job_that_would_wait_says_so_before_it_is_sent(num_online, said):
    preset = PRESETS["digits-federated"].spec
    spec = JobSpec.model_validate({**preset, "federated": {"clients": {"num": 7}}})
    assert shortage(spec, num_online) == said


@pytest.mark.parametrize(
    ("federated", "said"),
    [
        # 64 pixels x 10 digits and 10 constants are 650 numbers.
        ({}, "2.5 KiB down and 2.5 KiB up, for each client and round"),
        ({"encoding": {"name": "int8"}}, "2.5 KiB down and 650 B up, for each client and round"),
        ({"encoding": {"name": "top_k", "fraction": 0.01}}, "2.5 KiB down and 52 B up, for each client and round"),
        ({"strategy": {"name": "scaffold"}}, "5.1 KiB down and 5.1 KiB up, for each client and round"),
    ],
)
def test_the_traffic_is_said_before_it_is_caused(federated, said):
    raw = {**PRESETS["digits-federated"].spec, "model": {"name": "linear"}, "federated": federated}
    spec = JobSpec.model_validate(raw)
    assert traffic(spec, spec.federated, BUILTIN_SOURCES["digits"]) == said


def test_with_privacy_the_number_of_clients_is_a_mean_and_its_cost_is_forecast(owner):
    changes = {
        "federated.clients.num": "400",
        "federated.clients.per_round": "40",
        "federated.privacy": "on",
        "federated.privacy.delta": "1e-4",
    }
    answer = browser_of(owner).post(CHECK, {**typed(), **changes})
    assert ("Clients", "about 40 of 400 a round") in answer.context["summary"]
    assert answer.context["privacy"].forecast.rounds == 20
    assert "what the job will spend" in answer.content.decode()


def test_the_quorum_is_what_the_aggregator_needs(owner):
    changes = {"federated.clients.num": "8", "federated.aggregator.name": "krum", "federated.clients.quorum": "0.1"}
    answer = browser_of(owner).post(CHECK, {**typed(), **changes})
    assert ("Quorum", "5 of 8 must return") in answer.context["summary"]
    assert ("Algorithm", "FedAvg, Krum") in answer.context["summary"]


def test_a_switch_opens_its_section_and_closed_it_keeps_what_was_typed(owner):
    browser = browser_of(owner)
    closed = browser.post(CHECK, typed(federated__stop="off", federated__stop__patience="4")).content.decode()
    assert '<input type="hidden" name="federated.stop.patience" value="4">' in closed
    assert 'id="f-federated-stop-patience"' not in closed
    opened = browser.post(CHECK, typed(federated__stop="on", federated__stop__patience="4")).content.decode()
    assert 'id="f-federated-stop-patience"' in opened
    assert "patience: 4" in opened


def test_a_job_with_every_switch_on(owner):
    values = typed(federated__privacy="on", federated__stop="on", federated__stop__target="0.5")
    browser_of(owner).post(URL, values)
    federated = Job.objects.get().spec.federated
    assert federated.stop.target == 0.5
    assert federated.privacy.noise_multiplier == 1.0


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        (
            {"federated.clients.per_round": "3"},
            "federated.clients.per_round",
            "“Clients drawn each round” is 3, and the job has 2 clients: lower it, or raise “Number of nodes”.",
        ),
        ({"federated.strategy.name": "one_shot"}, "federated.rounds", "set “Rounds” to 1"),
        ({"federated.aggregator.name": "krum"}, "federated.aggregator:krum.attackers", "lower “Attackers”"),
        (
            {"federated.stop": "on", "federated.stop.patience": ""},
            "federated.stop.patience",
            "set “Patience”, “Target” or both",
        ),
        (
            {"federated.strategy.name": "scaffold", "federated.encoding.name": "int8"},
            "federated.encoding.name",
            "set “Update encoding” to float32",
        ),
        (
            {"federated.strategy.name": "scaffold", "training.optimizer.name": "adam"},
            "training.optimizer.name",
            "set “Optimizer” to SGD",
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_the_field_to_change(changes, field, said, owner):
    assert said in error_at(browser_of(owner).post(URL, {**typed(), **changes}).content.decode(), field)


def test_what_names_no_field_stands_at_its_section():
    said = "These do not go together."
    form = SpecForm(typed(), [SpecProblem(loc=("federated",), message=said)])
    assert {bound.section.title: bound.errors for bound in form.sections if bound.errors} == {"Rounds": [said]}


def test_what_names_no_field_of_the_clients_stands_at_their_card():
    said = "These do not go together."
    form = SpecForm(typed(), [SpecProblem(loc=("federated", "clients"), message=said)])
    assert {bound.section.title: bound.errors for bound in form.sections if bound.errors} == {"Clients": [said]}


def test_who_wants_to_name_nodes_is_told_their_names(owner, admin):
    for name in ("ward-b", "ward-a"):
        enrol(name, admin, preapproved=True)
    page = browser_of(owner).get(URL).content.decode()
    assert "There are ward-a, ward-b." in page
    wrong = browser_of(owner).post(URL, typed(federated__clients__nodes="ward-a, ward-x")).content.decode()
    assert "ward-x" in error_at(wrong, "federated.clients.nodes")


def test_a_foreign_team_is_not_taken(owner, stranger, team):
    browser_of(owner).post(URL, typed(team="oncology"))
    assert Job.objects.get().team == team


def _all(fields):
    for field in fields:
        yield field
        yield from _all(field.fields)

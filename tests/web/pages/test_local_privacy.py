"""What pages say of local privacy: forecast and warnings before a job, what nodes have said after, and nodes' budgets."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template.loader import render_to_string
from django.test import Client
from django.urls import reverse

from tests.conftest import browser_of
from tests.web.pages.conftest import enrol, submit
from trainer.federated.row_privacy import Cost, epsilon_of
from trainer.protocol import SourceBudget
from trainer.sources import BUILTIN_SOURCES, SourceSchema
from trainer.spec import JobSpec
from webapp.fleet.budgets import budgets_by_source
from webapp.fleet.models import Node
from webapp.jobs.form_values import values_of
from webapp.jobs.local_privacy import budget_warnings, forecast_local, local_privacy_of, told
from webapp.jobs.models import Job, Participation
from webapp.jobs.templatetags.privacy_ui import epsilon
from webapp.teams.models import Team

DIGITS = BUILTIN_SOURCES["digits"]
PER_ROUND = Cost(1.0, 100 / 719, 7)
"""Of a client with half of the digits' training rows, in batches of 100."""


def sections(**federated: Any) -> dict[str, Any]:
    return {
        "data": {"source": "digits", "scaling": "none"},
        "training": {"batch_size": 100},
        "federated": {"rounds": 10, "clients": {"num": 2}, "local_privacy": {}, **federated},
    }


def spec_with(data: dict[str, Any] | None = None, **federated: Any) -> JobSpec:
    raw = {"name": "t", "mode": "federated", "model": {"name": "linear"}, **sections(**federated)}
    return JobSpec.model_validate(raw | {"data": {**raw["data"], **(data or {})}})


def cost_of(num_rounds: int, delta: float = 1e-5) -> float:
    return epsilon_of([PER_ROUND._replace(steps=7 * num_rounds)], delta)


def budget(max_epsilon: float, spent: float = 0.0, source: str = "digits") -> SourceBudget:
    return SourceBudget(source=source, max_epsilon=max_epsilon, delta=1e-5, spent_epsilon=spent)


def a_node(name: str, *budgets: SourceBudget, sources: tuple[SourceSchema, ...] = ()) -> Node:
    """A node as the selectors give it, without a row."""
    facts: dict[str, Any] = dict.fromkeys(
        ("hostname", "platform", "agent_version", "torch_version", "python_version"), "x"
    )
    facts |= {"num_cpus": 1, "memory_bytes": 1, "budgets": [b.model_dump() for b in budgets]}
    return Node(name=name, facts_json={**facts, "sources": [s.model_dump(mode="json") for s in sources]})


def part_of(job: Job, user: User, part: str, query: str = "") -> str:
    return browser_of(user).get(reverse("job-part", args=[job.pk, part]) + query).content.decode()


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def test_forecast_of_even_shares() -> None:
    forecast = forecast_local(spec_with(), DIGITS, [])
    assert forecast is not None
    [client] = forecast.clients
    assert (client.node, client.num_rows) == ("", 719)
    assert client.epsilon == pytest.approx(cost_of(10))
    [(subject, sentence)] = told(forecast)
    assert subject == "Local privacy"
    assert sentence == f"ε ≤ {epsilon(cost_of(10))} for a client (719 rows), at δ = 1e-05 and in all 10 rounds"


def test_forecast_of_clients_that_are_drawn() -> None:
    spec = spec_with(clients={"num": 2, "per_round": 1})
    forecast = forecast_local(spec, DIGITS, [])
    assert forecast is not None
    assert forecast.clients[0].epsilon == pytest.approx(cost_of(5))
    assert told(forecast)[0][1].endswith("in about 5 of 10 rounds")


def test_forecast_of_nodes_with_rows_of_their_own() -> None:
    """Who has fewest spends most."""
    own = [DIGITS.model_copy(update={"name": "ward", "num_rows": 200 * n}) for n in range(1, 7)]
    nodes = [a_node(f"node-{n}", sources=(own[n - 1],)) for n in (3, 1, 2, 6, 5, 4)]
    spec = spec_with({"source": "ward", "partition": {"scheme": "natural"}})
    forecast = forecast_local(spec, own[0], nodes)
    assert forecast is not None
    assert [client.num_rows for client in forecast.clients] == [160, 320, 480, 640, 800, 960]
    assert [client.epsilon for client in forecast.clients] == sorted(
        (client.epsilon for client in forecast.clients), reverse=True
    )
    sentence = told(forecast)[0][1]
    assert " on node-1 (160 rows), " in sentence
    assert " on node-4 (640 rows), less on 2 others, at δ" in sentence


def test_no_forecast_without() -> None:
    assert forecast_local(spec_with(local_privacy=None), DIGITS, []) is None
    assert told(None) == []


@pytest.mark.parametrize(("limit", "spent_rounds"), [(100.0, 0), (cost_of(10) * 1.001, 0), (cost_of(30), 9)])
def test_no_warning_where_the_budget_lasts(limit: float, spent_rounds: int) -> None:
    node = a_node("node-1", budget(limit, cost_of(spent_rounds) if spent_rounds else 0.0))
    assert budget_warnings(spec_with(), DIGITS, [node]) == []


def test_a_warning_names_the_node_and_the_round_and_what_to_do() -> None:
    [warning] = budget_warnings(spec_with(), DIGITS, [a_node("node-1", budget(cost_of(4) * 1.001)), a_node("node-2")])
    assert warning.startswith(
        "node-1 will refuse its part after about 4 of 10 rounds: its privacy budget for 'digits' is ε = "
    )
    assert (
        f"0 is spent, and this job would bring it to about {epsilon(cost_of(10))}. Raise the noise multiplier"
        in warning
    )


def test_a_spent_budget_refuses_every_round() -> None:
    [warning] = budget_warnings(spec_with(), DIGITS, [a_node("node-1", budget(2.0, spent=2.0))])
    assert warning.startswith("node-1 will refuse every round: ")


def test_a_budget_takes_no_job_without_a_bound() -> None:
    node = a_node("node-1", budget(8.0))
    [warning] = budget_warnings(spec_with(local_privacy=None), DIGITS, [node])
    assert warning.startswith("node-1 takes no part in this job: its owner keeps a privacy budget for 'digits'")
    assert budget_warnings(spec_with(local_privacy=None), BUILTIN_SOURCES["diabetes"], [node]) == []
    # Who is not asked does not matter.
    others = spec_with(local_privacy=None, clients={"num": 2, "nodes": ["node-2", "node-3"]})
    assert budget_warnings(others, DIGITS, [node]) == []


def test_few_warnings_for_many_nodes() -> None:
    nodes = [a_node(f"node-{n}", budget(0.1)) for n in range(20)]
    assert len(budget_warnings(spec_with(), DIGITS, nodes)) == 3


def test_budgets_by_source() -> None:
    nodes = [a_node("b", budget(8.0, 2.0), budget(1.0, 3.0, "ward")), a_node("a", budget(8.0, 6.0))]
    found = budgets_by_source(nodes)
    assert [(held.node, held.share) for held in found["digits"]] == [("a", 0.75), ("b", 0.25)]
    assert [held.share for held in found["ward"]] == [1.0]


@pytest.mark.django_db
def test_the_job_page_says_what_nodes_have_said(ran: Job, owner: User) -> None:
    spec = {**ran.spec_json, **sections(), "model": {"name": "linear"}}
    Job.objects.filter(pk=ran.pk).update(
        spec_json=JobSpec.model_validate(spec).model_dump(mode="json"), progress_total=10
    )
    ran.refresh_from_db()
    Participation.objects.filter(round__attempt__job=ran, num_examples=719).update(epsilon=1.2345)
    local = local_privacy_of(ran)
    assert local is not None
    assert local.worst is not None
    assert (local.worst.epsilon, local.worst.assignment.node.name) == (1.2345, "node-a")
    assert local.at_the_end == pytest.approx(max(1.2345, cost_of(10)))
    panel = text_of(part_of(ran, owner, "privacy"))
    assert "ε ≤ 1.24 of client 0's rows, on node-a, by round 1" in panel
    assert f"ε ≤ {epsilon(cost_of(10))} for a client of 719 rows, in all 10 rounds" in panel
    opened = ran.attempts.get().rounds.get().pk
    table = part_of(ran, owner, "rounds", f"?open={opened}")
    assert "by the node's ledger" in table
    assert "1.24" in table


@pytest.mark.django_db
def test_before_any_update(team: Team, owner: User) -> None:
    job = submit(team, owner, **sections(), model={"name": "linear"})
    local = local_privacy_of(job)
    assert local is not None
    assert local.worst is None
    assert local.at_the_end == pytest.approx(cost_of(10))
    assert "Spent nothing yet" in text_of(render_to_string("jobs/parts/local_privacy.html", {"local": local}))


@pytest.mark.django_db
def test_a_plain_job_has_no_such_panel(ran: Job, owner: User) -> None:
    assert local_privacy_of(ran) is None
    assert "by the node" not in part_of(ran, owner, "rounds", f"?open={ran.attempts.get().rounds.get().pk}")


@pytest.mark.django_db
def test_the_form_forecasts_and_warns_while_one_types(admin: User, owner: User) -> None:
    node = enrol("gpu-7", admin, preapproved=True)
    Node.objects.filter(pk=node.pk).update(facts_json={**node.facts_json, "budgets": [budget(1.0).model_dump()]})
    spec = spec_with().model_dump(mode="json")
    said = text_of(browser_of(owner).post("/jobs/new/check/", values_of(spec)).content.decode())
    assert (
        f"Local privacy ε ≤ {epsilon(cost_of(10))} for a client (719 rows), at δ = 1e-05 and in all 10 rounds" in said
    )
    assert "gpu-7 will refuse every round: its privacy budget for" in said


@pytest.mark.django_db
def test_pages_and_api_show_budgets(admin: User, client: Client) -> None:
    node = enrol("gpu-7", admin, preapproved=True)
    Node.objects.filter(pk=node.pk).update(
        facts_json={**node.facts_json, "budgets": [budget(8.0, 2.0999).model_dump()]}
    )
    client.force_login(admin)
    assert "ε 2.1 of 8 spent" in text_of(client.get("/data/").content.decode()).replace("2.10", "2.1")
    page = client.get(f"/nodes/{node.pk}/").content.decode()
    assert "Privacy budget" in page
    assert 'aria-label="Privacy spent of digits on gpu-7"' in page

"""Clients drawn evenly over their nodes' labels: the draw, the check at submission, the gang, and what a round says."""

from datetime import UTC, datetime

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.federated.draw import draw_clients, label_shares
from webapp.core.models import Transition
from webapp.fleet.models import Node
from webapp.jobs import services
from webapp.jobs.models import Job, Participation, Round
from webapp.jobs.planner import Needs, PlanNode, QueuedJob, plan, why_waiting
from webapp.jobs.selectors import check_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def spec_of(**clients: object):
    return spec_with(FEDERATED, federated={"clients": clients})


@pytest.mark.parametrize(
    ("drawn", "shares"), [(2, {"north": 1, "south": 1}), (5, {"north": 3, "south": 2}), (6, {"north": 3, "south": 3})]
)
def test_labels_share_the_draw_evenly_and_the_first_take_the_rest(drawn, shares):
    spec = spec_of(num=6, per_round=drawn, draw_labels=["north", "south"])
    assert label_shares(spec.federated.clients) == shares


def test_each_round_draws_its_share_of_each_label_by_the_seed():
    spec = spec_of(num=7, per_round=4, draw_labels=["north", "south"])
    labels = {0: ["south"], 1: ["south", "north"], 2: ["north"], 3: ["east"], 4: ["south"], 5: ["north"], 6: ["south"]}
    draws = [draw_clients(spec, number, labels) for number in range(1, 60)]
    for draw in draws:
        assert draw == sorted(draw)
        # The second carries both, and counts for the first that the job names.
        assert len(set(draw) & {1, 2, 5}) == len(set(draw) & {0, 4, 6}) == 2
    assert set().union(*draws) == {0, 1, 2, 4, 5, 6}
    assert draws == [draw_clients(spec, number, labels) for number in range(1, 60)]
    assert draws != [draw_clients(spec_with(spec, seed=1), number, labels) for number in range(1, 60)]


def test_of_too_few_all_are_drawn():
    spec = spec_of(num=4, per_round=4, draw_labels=["north", "south"])
    assert draw_clients(spec, 1, {0: ["north"], 1: ["north"], 2: ["north"], 3: ["south"]})[-1] == 3
    assert len(draw_clients(spec, 1, {0: ["north"], 1: ["north"], 2: ["north"], 3: ["south"]})) == 3


@pytest.mark.parametrize(
    ("clients", "sentence"),
    [
        ({"num": 3, "nodes": ["a", "b", "a"]}, "clients.nodes names 'a' more than once: a node is one client."),
        (
            {"num": 3, "per_round": 1, "draw_labels": ["x", "y"]},
            "clients.draw_labels names 2 labels, and 1 client is drawn",
        ),
    ],
)
def test_the_spec_refuses_what_counts_nobody(clients, sentence):
    with pytest.raises(ValueError, match=sentence):
        spec_of(**clients)


def node_of(name: str, *labels: str, free: int = 1) -> PlanNode:
    return PlanNode(id=name, name=name, slots=1, free_slots=free, labels=frozenset(labels))


def test_a_gang_has_the_labels_that_its_rounds_draw():
    needs = Needs(num_nodes=3, slots=1, team_id=1, shares=(("north", 1), ("south", 1)))
    job = QueuedJob(1, needs, NOW)
    nodes = [node_of("a", "north"), node_of("b", "north"), node_of("c", "north"), node_of("d"), node_of("e", "south")]
    placed = plan([job], nodes, now=NOW)
    assert [(p.index, p.node_id) for p in placed] == [(0, "a"), (1, "b"), (2, "e")]
    busy = [*nodes[:4], node_of("e", "south", free=0)]
    assert plan([job], busy, now=NOW) == []
    assert why_waiting(job, busy)[0] == (
        "It needs 3 nodes with one of the labels 'north', 'south' and a free slot each, 1 of them with 'south'; of these none "
        "has room."
    )


def label(**labels: list[str]) -> None:
    for name, given in labels.items():
        Node.objects.filter(name=name.replace("_", "-")).update(labels=given)


@pytest.mark.django_db
def test_too_few_labelled_nodes_are_said_when_the_job_is_submitted(team, nodes):
    spec = spec_of(num=2, draw_labels=["north", "south"]).model_dump(mode="json", exclude_none=True)
    label(node_1=["north"])
    (problem,) = check_spec(team=team, raw=spec)
    assert problem.loc == ("federated", "clients", "draw_labels")
    assert problem.message == (
        "Each round draws 1 with the label 'south', and 0 of Cardiology's nodes that may take part count for it: draw fewer "
        "clients, or label more nodes."
    )
    label(node_2=["south", "north"])
    # It counts for north, the first.
    assert isinstance(check_spec(team=team, raw=spec), list)
    label(node_2=["south"])
    assert not isinstance(check_spec(team=team, raw=spec), list)


@pytest.mark.django_db(transaction=True)
def test_a_round_says_which_label_has_become_rare(team, owner, make_node, conductor):
    nodes = [make_node(f"node-{number}") for number in (1, 2, 3)]
    label(node_1=["north"], node_2=["south"], node_3=["south"])
    spec = spec_of(num=3, per_round=2, draw_labels=["north", "south"])
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    asked = [message for node in nodes for message in node.messages()]
    assert len(asked) == 2
    assert asked[0].client == 0
    assert Round.objects.get().state_reason == ""
    label(node_1=[])
    for message in asked:
        nodes[message.client].deliver(message)
    conductor.work()
    second = Round.objects.get(number=2)
    sentence = "Of its clients too few carry a label: it draws 0 of 1 with the label 'north'."
    assert second.facts == {"label_shortage": sentence}
    assert Transition.objects.get(subject=f"round:{second.pk}").reason == f"Round 2 opened. {sentence}"
    client = Participation.objects.get(round=second).assignment.index
    nodes[client].deliver(nodes[client].asked())
    conductor.work()
    second.refresh_from_db()
    assert second.state == "closed"
    assert second.facts["label_shortage"] == sentence


@pytest.mark.django_db(transaction=True)
def test_without_any_labelled_node_the_job_fails_and_names_the_label(team, owner, make_node, conductor):
    nodes = [make_node(f"node-{number}") for number in (1, 2)]
    label(node_1=["north"], node_2=["north"])
    services.submit_job(team=team, owner=owner, spec=spec_of(num=2, draw_labels=["north"]))
    conductor.work()
    label(node_1=[], node_2=[])
    for node in nodes:
        node.deliver(node.asked())
    conductor.work()
    services.sweep_jobs()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == (
        "failed",
        "Round 2 needed 1 update of 0 and got 0. Of its clients too few carry a label: it draws 0 of 2 with the label 'north'. "
        "Give the label to more of the job's nodes, and resume it.",
    )

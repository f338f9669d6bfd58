"""Who takes part in a round: drawn by the seed, or, under privacy, by the operating system's randomness."""

from collections import Counter

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.federated.draw import draw_clients
from trainer.protocol import TrainRound
from webapp.jobs import services
from webapp.jobs.models import Job, Participation, Round
from webapp.jobs.rounds import num_quorum
from webapp.jobs.selectors import check_spec


def spec_of(**federated: object):
    return spec_with(FEDERATED, federated=federated)


@pytest.mark.parametrize(
    ("clients", "num"),
    [({"num": 10}, 10), ({"num": 10, "fraction": 0.3}, 3), ({"num": 10, "per_round": 7, "fraction": 0.3}, 7)],
)
def test_so_many_are_drawn_and_the_seed_says_who(clients, num):
    spec = spec_of(clients=clients)
    draws = [draw_clients(spec, number) for number in range(1, 50)]
    assert all(draw == sorted(set(draw)) and len(draw) == num for draw in draws)
    assert draws == [draw_clients(spec, number) for number in range(1, 50)]
    assert set().union(*draws) == set(range(10))
    if num < 10:
        assert draws != [draw_clients(spec_with(spec, seed=1), number) for number in range(1, 50)]


def test_under_privacy_each_client_is_drawn_by_itself_and_not_by_the_seed():
    spec = spec_of(rounds=5, clients={"num": 400, "per_round": 100}, privacy={"noise_multiplier": 1.0})
    draws = [draw_clients(spec, 1) for _ in range(60)]
    assert len({tuple(draw) for draw in draws}) == 60, "the same round, drawn anew"
    sizes = [len(draw) for draw in draws]
    # Binomial(400, 1/4): mean 100, standard deviation 8.7; a fixed size would be 100 each time.
    assert len(set(sizes)) > 5
    assert abs(sum(sizes) / 60 - 100) < 6
    share = Counter(client for draw in draws for client in draw)
    assert max(share.values()) < 40


def test_under_privacy_all_are_all():
    spec = spec_of(clients={"num": 3}, privacy={"noise_multiplier": 1.0})
    assert draw_clients(spec, 1) == [0, 1, 2]


@pytest.mark.parametrize(
    ("aggregator", "quorum", "needed"),
    [
        ({"name": "mean"}, 0.5, 5),
        ({"name": "mean"}, 0.01, 1),
        ({"name": "mean"}, 0.51, 6),
        ({"name": "krum", "attackers": 3}, 0.5, 9),
        ({"name": "krum", "attackers": 1, "select": 8}, 0.5, 9),
        ({"name": "krum", "attackers": 1}, 0.8, 8),
        ({"name": "bulyan", "attackers": 1}, 0.1, 7),
    ],
)
def test_a_quorum_is_never_below_what_the_aggregator_works_with(aggregator, quorum, needed):
    spec = spec_of(clients={"num": 10, "quorum": quorum}, aggregator=aggregator)
    assert num_quorum(spec, 10) == needed


@pytest.mark.django_db(transaction=True)
class TestNamedNodes:
    def test_only_they_take_part_in_the_order_of_their_names_in_the_spec(self, team, owner, make_node, conductor):
        nodes = {name: make_node(name) for name in ("a", "b", "c")}
        services.submit_job(team=team, owner=owner, spec=spec_of(clients={"num": 2, "nodes": ["c", "a"]}))
        conductor.work()
        assert [nodes[name].asked().client for name in ("c", "a")] == [0, 1]
        assert nodes["b"].messages() == []

    def test_unknown_ones_are_refused_at_their_field(self, team, stranger, make_node):
        make_node("a")
        make_node("b").node.teams.add(stranger.teams.get())
        raw = spec_of(clients={"num": 2, "nodes": ["a", "b", "x"]}).model_dump(mode="json")
        (problem,) = check_spec(team=team, raw=raw)
        assert problem.loc == ("federated", "clients", "nodes")
        assert problem.message == "Cardiology has no node b, x. There are: a."

    def test_who_is_offline_is_waited_for(self, team, owner, nodes, conductor):
        nodes[1].vanish()
        services.submit_job(team=team, owner=owner, spec=spec_of(clients={"num": 2, "nodes": ["node-1", "node-2"]}))
        conductor.work()
        assert Job.objects.get().waiting_for["what"] == (
            "It needs 2 nodes of node-1, node-2 with a free slot each; only 1 is online (node-1). Offline: node-2."
        )


@pytest.mark.django_db(transaction=True)
def test_a_client_keeps_its_node_in_the_next_attempt(team, owner, make_node, conductor):
    """What a client keeps for itself (SCAFFOLD, FedBN, top_k) lies on its node."""
    nodes = {name: make_node(name, slots=1) for name in ("b", "c")}
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    for node in nodes.values():
        node.deliver(node.asked())
    conductor.work()
    services.cancel_job(job=job, actor=owner)
    for node in nodes.values():
        node.report(Round.objects.last().attempt_id, "released")
        node.messages()
    # An emptier node whose name comes first has joined, and would be client 0.
    nodes["a"] = make_node("a", slots=4)
    services.resume_job(job=job, actor=owner)
    conductor.work()
    asked = {name: [m for m in node.messages() if isinstance(m, TrainRound)] for name, node in nodes.items()}
    assert {name: [m.client for m in messages] for name, messages in asked.items()} == {"b": [0], "c": [1], "a": []}


@pytest.mark.django_db(transaction=True)
def test_a_round_of_a_robust_rule_waits_for_as_many_as_it_works_with(team, owner, make_node, conductor):
    nodes = [make_node(f"node-{number}", slots=1) for number in range(6)]
    spec = spec_of(rounds=1, clients={"num": 6}, aggregator={"name": "krum", "attackers": 1})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    asked = [node.asked() for node in nodes]
    # One lies: its update is far from all others.
    for number in range(5):
        nodes[number].deliver(asked[number], value=1000.0 if number == 2 else 1.0 + number / 100)
    nodes[5].report(asked[5].attempt_id, "failed", "The runner was killed.", 1)
    conductor.work()
    round_ = Round.objects.get()
    assert (round_.num_quorum, round_.state) == (5, "closed")
    assert 2 in round_.facts["left_out"]
    assert len(round_.facts["norms"]) == 5
    assert Participation.objects.filter(state="returned").count() == 5
    assert Job.objects.get().state_reason == "The round closed, with 1 update missing."

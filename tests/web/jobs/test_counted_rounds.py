"""Each client hears which of its rounds counted last: from what it kept of that one it goes on (SCAFFOLD, FedBN, top_k)."""

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.protocol import TrainRound
from webapp.jobs import services
from webapp.jobs.models import Attempt, Job, Participation, Round
from webapp.jobs.rounds import counted_rounds

pytestmark = pytest.mark.django_db(transaction=True)

SCAFFOLD = spec_with(
    FEDERATED,
    federated={"strategy": {"name": "scaffold"}, "rounds": 5},
    training={"optimizer": {"name": "sgd", "lr": 0.1}},
)


@pytest.fixture
def job(team, owner, nodes, conductor) -> Job:
    job = services.submit_job(team=team, owner=owner, spec=SCAFFOLD)
    conductor.work()
    return job


def asked(nodes) -> list[TrainRound]:
    return [next(m for m in node.messages() if isinstance(m, TrainRound)) for node in nodes]


def train(nodes, conductor, *, late: int | None = None) -> list[tuple[int, int]]:
    """Answer the open round, but for the client that is late; return for each the round and what was said to have counted."""
    messages = asked(nodes)
    for index, (node, message) in enumerate(zip(nodes, messages, strict=True)):
        if index != late:
            assert node.deliver(message, value=1, num_steps=1).accepted
    if late is not None:
        Round.objects.filter(state="open").update(deadline_at=timezone.now())
        services.sweep_jobs()
    conductor.work()
    return [(message.round, message.counted_round) for message in messages]


def test_a_round_that_closed_without_the_client_does_not_count(job, nodes, conductor):
    assert train(nodes, conductor) == [(1, 0), (1, 0)]
    assert train(nodes, conductor, late=1) == [(2, 1), (2, 1)]
    assert train(nodes, conductor, late=1) == [(3, 2), (3, 1)]
    assert train(nodes, conductor) == [(4, 3), (4, 1)]
    assert train(nodes, conductor) == [(5, 4), (5, 4)]


def test_an_update_counts_once_its_round_is_closed_and_in_later_attempts_too(job, owner, nodes, conductor):
    train(nodes, conductor)
    first = asked(nodes)
    assert nodes[0].deliver(first[0], value=1, num_steps=1).accepted
    services.cancel_job(job=job, actor=owner)
    for node in nodes:
        node.report(first[0].attempt_id, "released")
    services.resume_job(job=job, actor=owner)
    conductor.work()
    assert Attempt.objects.count() == 2
    assert Participation.objects.filter(round__number=2, state="returned").exists()
    assert train(nodes, conductor) == [(2, 1), (2, 1)], "round 2 of the first attempt never closed"
    assert train(nodes, conductor) == [(3, 2), (3, 2)]


def test_whoever_is_asked_again_hears_the_same(job, nodes, conductor):
    train(nodes, conductor)
    train(nodes, conductor, late=1)
    first = asked(nodes)
    nodes[1].vanish()
    services.sweep_jobs()
    nodes[1].beat()
    Participation.objects.filter(round__number=3).update(asked_at=F("asked_at") - timedelta(seconds=11))
    services.sweep_jobs()
    assert asked(nodes) == first
    assert [message.counted_round for message in first] == [2, 1]


def test_another_job_does_not_count(job, team, owner, nodes, conductor):
    train(nodes, conductor)
    other = services.submit_job(team=team, owner=owner, spec=SCAFFOLD)
    conductor.work()
    messages = [m for node in nodes for m in node.messages() if isinstance(m, TrainRound) and m.job_id == other.pk]
    assert [message.counted_round for message in messages] == [0, 0]


def test_it_costs_one_query_for_all_clients_and_none_where_they_keep_nothing(job, nodes, conductor):
    train(nodes, conductor)
    for spec, counted, num_queries in ((SCAFFOLD, {0: 1, 1: 1}, 1), (FEDERATED, {}, 0)):
        with CaptureQueriesContext(connection) as captured:
            assert counted_rounds(job.pk, spec, [0, 1, 2]) == counted
        assert len(captured) == num_queries

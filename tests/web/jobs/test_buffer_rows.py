"""FedBuff's rows: what finding the newest ones costs, whose weights go, and whose measurements speak for a round."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from trainer.protocol import TrainRound, UpdateOffer
from webapp.blobs import services as blobs
from webapp.jobs import services
from webapp.jobs.buffer_rows import newest_participations
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def nodes(make_node) -> list[FarNode]:
    return [make_node(f"node-{number}") for number in (1, 2, 3)]


@pytest.fixture
def start(team, owner, nodes, conductor):
    """Submit a FedBuff job of three clients and take the first messages."""

    def submit(**federated: object) -> list[TrainRound]:
        strategy = {"name": "fedbuff", "buffer": 2}
        spec = spec_with(FEDERATED, federated={"clients": {"num": 3}, "strategy": strategy, **federated})
        services.submit_job(team=team, owner=owner, spec=spec)
        conductor.work()
        return [node.asked() for node in nodes]

    return submit


def add_rounds(attempt: Attempt, num: int) -> None:
    """Give the attempt closed rounds that all of its clients returned from."""
    now, first = timezone.now(), attempt.rounds.count() + 1
    fields = {"num_quorum": 1, "state": "closed", "weights_digest": "0" * 64, "deadline_at": now + timedelta(hours=1)}
    rounds = [Round(attempt=attempt, number=number, **fields) for number in range(first, first + num)]
    clients = Assignment.objects.filter(attempt=attempt)
    Participation.objects.bulk_create(
        Participation(round=round_, assignment=client, state="returned")
        for round_ in Round.objects.bulk_create(rounds)
        for client in clients
    )


def steps_of_looking(attempt: Attempt) -> int:
    """What finding the newest participations costs SQLite, in hundreds of its machine's instructions."""
    steps = []
    connection.connection.set_progress_handler(lambda: steps.append(1), 100)
    try:
        newest_participations(attempt)
    finally:
        connection.connection.set_progress_handler(None, 0)
    return len(steps)


def test_finding_the_newest_is_one_query_whatever_the_number_of_rounds(start, django_assert_num_queries):
    start()
    attempt = Attempt.objects.get()
    add_rounds(attempt, 20)
    with django_assert_num_queries(1):
        found = newest_participations(attempt)
    assert [(p.round.number, p.assignment.index) for p in found] == [(21, 0), (21, 1), (21, 2)]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="counts SQLite's instructions")
def test_finding_the_newest_does_not_read_the_rounds_before(start):
    start()
    attempt = Attempt.objects.get()
    few = steps_of_looking(attempt)
    add_rounds(attempt, 500)
    assert steps_of_looking(attempt) <= few + 2


@pytest.mark.parametrize("end", ["refused at the door", "failed", "refused"])
def test_the_weights_of_a_closed_round_go_with_the_last_client_that_needed_them(start, nodes, conductor, end):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index], value=1)
    conductor.work()
    first = asked[2].weights.digest
    assert blobs.exists(first)
    if end == "refused at the door":
        bad = blobs.save_bytes(b"not weights").digest
        assert not nodes[2].offer(asked[2], UpdateOffer(digest=bad, num_examples=100)).accepted
    else:
        nodes[2].report(asked[2].attempt_id, end, "No.", 1)
    assert Participation.objects.get(round__number=1, assignment__index=2).state == end.split()[0]
    assert not blobs.exists(first)


def test_the_weights_of_the_open_round_stay_for_the_others(start, nodes):
    asked = start()
    nodes[2].report(asked[2].attempt_id, "failed", "No.", 1)
    assert blobs.exists(asked[0].weights.digest)


def test_one_slow_client_does_not_measure_for_a_round_that_measures_nothing(start, nodes, conductor):
    stop = {"metric": "test/accuracy", "target": 0.5}
    asked = start(rounds=4, evaluate_every=2, stop=stop)
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    second = [node.asked() for node in nodes[:2]]
    nodes[2].deliver(asked[2])  # round 1 measures nothing: its update is stale in round 2, and has no test/*
    nodes[0].deliver(second[0], metrics={"test/accuracy": 0.25})
    conductor.work()
    assert Round.objects.get(number=2).metrics == {"test/accuracy": 0.25}
    third = nodes[0].asked()
    nodes[1].deliver(second[1], metrics={"test/accuracy": 0.75})
    nodes[0].deliver(third, metrics={"train/loss": 1.0})
    conductor.work()
    assert Round.objects.get(number=3).metrics == {"train/loss": 1.0}
    assert Job.objects.get().state == "running"


def test_where_every_update_was_measured_slow_clients_count_as_well(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index], metrics={"test/accuracy": 0.5})
    conductor.work()
    nodes[2].deliver(asked[2], metrics={"test/accuracy": 0.25})
    nodes[0].deliver(nodes[0].asked(), metrics={"test/accuracy": 0.75})
    conductor.work()
    assert Round.objects.get(number=2).metrics == {"test/accuracy": 0.5}

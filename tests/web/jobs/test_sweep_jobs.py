"""The sweep and the round: what they cost, and what they mend."""

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.protocol import ReceiveModel
from webapp.jobs import advance, services
from webapp.jobs.models import Assignment, Attempt, Round

pytestmark = pytest.mark.django_db(transaction=True)


def statements(captured: CaptureQueriesContext) -> list[str]:
    """The queries without what one database has and another has not: brackets of transactions, PostgreSQL's locks."""
    brackets = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK", "SELECT pg_advisory")
    return [q["sql"] for q in captured.captured_queries if not q["sql"].startswith(brackets)]


def test_idle_it_costs_four_queries(team, owner, nodes):
    with CaptureQueriesContext(connection) as captured:
        services.sweep_jobs()
    assert len(statements(captured)) == 4


def test_a_waiting_round_costs_a_fixed_number_of_queries(team, owner, make_node, conductor):
    counts = []
    for num in (2, 4):
        for index in range(num):
            make_node(f"n{num}-{index}", slots=1)
        services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"clients": {"num": num}}))
        conductor.work()
        attempt = Attempt.objects.last()
        with CaptureQueriesContext(connection) as captured:
            services.advance_attempt(attempt_id=attempt.pk)
        counts.append(len(statements(captured)))
    # The attempt with its job, the round, its participations with assignments and nodes.
    assert counts == [3, 3]


def test_closing_a_round_and_opening_the_next_costs_a_fixed_number_of_queries(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    counts = []
    for number in (1, 2):
        for index, node in enumerate(nodes):
            with CaptureQueriesContext(connection) as captured:
                node.deliver(node.asked(), value=number + index, metrics={"train/loss": 1.0, "test/loss": 1.0})
            accepting = len(statements(captured))
        with CaptureQueriesContext(connection) as captured:
            services.advance_attempt(attempt_id=Attempt.objects.get().pk)
        counts.append((accepting, len(statements(captured))))
    assert Round.objects.filter(state="closed").count() == 2
    # The second round finds its series there. A change here is a change of every round's overhead.
    assert counts[1] == (5, 25)


def test_one_broken_attempt_does_not_stop_the_others_and_fails_in_the_end(
    team, owner, nodes, conductor, monkeypatch, caplog
):
    for _ in range(2):
        services.submit_job(team=team, owner=owner, spec=FEDERATED)
    services.schedule_jobs()
    first, second = Attempt.objects.order_by("pk")
    real = advance.advance_federated

    def break_first(attempt):
        if attempt.pk == first.pk:
            raise RuntimeError("A mistake of ours.")
        real(attempt)

    monkeypatch.setattr(advance, "advance_federated", break_first)
    for _ in range(4):
        services.sweep_jobs()
    assert list(Round.objects.values_list("attempt", flat=True)) == [second.pk]
    assert "cannot go on" in caplog.text
    first.refresh_from_db()
    assert first.state == "running", "it may only have met another worker's step"
    services.sweep_jobs()
    first.refresh_from_db()
    assert first.state_reason == (
        "The server could not go on with this job (RuntimeError): its log tells an administrator why."
    )
    assert first.job.state == "failed"


def test_a_node_that_was_away_at_the_end_gets_the_model_when_it_is_back(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"rounds": 1}))
    conductor.work()
    for node in nodes:
        node.deliver(node.asked())
    conductor.work()
    attempt = Attempt.objects.get()
    nodes[0].report(attempt.pk, "model_kept")
    for node in nodes:
        node.messages()
        node.report(attempt.pk, "released")
    services.sweep_jobs()
    assert [node.messages() for node in nodes] == [[], []]
    Assignment.objects.update(model_sent_at=F("model_sent_at") - timedelta(seconds=61))
    for _ in range(2):
        services.sweep_jobs()
    assert nodes[0].messages() == []
    assert [type(m) for m in nodes[1].messages()] == [ReceiveModel]

"""A round whose nodes come and go: nobody waits without an end, and no healthy run dies of a flaked connection."""

from datetime import timedelta

import pytest
from django.db.models import F
from django.utils import timezone

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.protocol import StopAttempt, TrainRound
from webapp.fleet import services as fleet
from webapp.jobs import services, settling
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def start(team, owner, nodes, conductor):
    """Submit a job and take round 1's messages from the nodes' queues."""

    def submit(**federated: object) -> list[TrainRound]:
        services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated=federated))
        conductor.work()
        return [node.asked() for node in nodes]

    return submit


def age(model: type, field: str, by: timedelta, **which: object) -> None:
    """Let time have passed for some rows."""
    assert model.objects.filter(**which).update(**{field: F(field) - by})


def states() -> list[str]:
    return list(Participation.objects.order_by("round__number", "assignment__index").values_list("state", flat=True))


def test_a_node_that_is_gone_is_lost_and_the_job_says_whom_it_waits_for(start, nodes):
    asked = start()
    nodes[0].deliver(asked[0])
    nodes[1].vanish()
    services.sweep_jobs()
    assert states() == ["returned", "lost"]
    job = Job.objects.get()
    round_ = Round.objects.get()
    assert job.waiting_for["what"] == (
        "Round 1 waits for node-2. node-2 stopped answering: its last sign came 15 s ago."
    )
    assert job.waiting_for["since"] == round_.opened_at.isoformat()
    lost_at = Participation.objects.get(state="lost").state_changed_at
    assert job.waiting_for["until"] == (lost_at + timedelta(seconds=30)).isoformat()
    assert job.waiting_for["then"] == "The round closes with the 1 update that is in."


def test_with_a_quorum_it_closes_without_the_lost_after_30_seconds(start, nodes):
    asked = start()
    nodes[0].deliver(asked[0])
    nodes[1].vanish()
    services.sweep_jobs()
    age(Participation, "state_changed_at", timedelta(seconds=31), state="lost")
    services.sweep_jobs()
    assert states()[:2] == ["returned", "lost"]
    assert Participation.objects.get(round__number=1, state="lost").state_reason == (
        "node-2 stopped answering: its last sign came 15 s ago."
    )
    assert [r.state for r in Round.objects.all()] == ["closed", "open"]
    assert Job.objects.get().waiting_for is None
    # The next round does not wait for it again: it has been gone for longer than that.
    Node = type(nodes[1].node)
    age(Node, "state_changed_at", timedelta(seconds=31), pk=nodes[1].node.pk)
    for number in (2, 3):
        age(Participation, "state_changed_at", timedelta(seconds=31), state="lost")
        nodes[0].deliver(nodes[0].asked())
        services.sweep_jobs()
        assert Job.objects.get().progress_done == number
    assert Job.objects.get().state_reason == "All 3 rounds closed, with 3 updates missing."


def test_a_lost_client_is_neither_let_in_nor_asked_once_its_round_has_closed(start, nodes, conductor):
    asked = start()
    nodes[0].deliver(asked[0])
    nodes[1].vanish()
    services.sweep_jobs()
    Round.objects.update(deadline_at=timezone.now())
    services.sweep_jobs()
    late = nodes[1].deliver(asked[1])
    assert (late.accepted, late.reason) == (False, "Round 1 takes no more updates: it is closed.")
    nodes[1].beat()
    conductor.work()
    assert states()[:2] == ["returned", "lost"]


def test_a_round_opened_while_a_node_is_away_counts_from_when_it_went(start, nodes, conductor):
    asked = start()
    for index, node in enumerate(nodes):
        node.deliver(asked[index])
    nodes[1].vanish()
    age(type(nodes[1].node), "state_changed_at", timedelta(minutes=5), pk=nodes[1].node.pk)
    conductor.work()
    assert states()[2:] == ["asked", "lost"]
    nodes[0].deliver(nodes[0].asked())
    services.sweep_jobs()
    assert states()[2:4] == ["returned", "lost"]


def test_nobody_waits_for_a_node_that_was_revoked(start, nodes, conductor, admin):
    asked = start()
    nodes[0].deliver(asked[0])
    fleet.revoke_node(node=nodes[1].node, actor=admin)
    conductor.work()
    assert states() == ["returned", "lost", "asked", "lost"]
    assert Participation.objects.get(round__number=1, state="lost").state_reason == "Revoked by admin."
    # The last update closes the round itself, as if the revoked node had no part: no sweep is needed.
    nodes[0].deliver(nodes[0].asked())
    conductor.work()
    assert Job.objects.get().progress_done == 2


def test_without_a_revoked_node_a_full_quorum_is_sought_elsewhere(start, nodes, conductor, admin):
    asked = start(clients={"quorum": 1.0})
    nodes[0].deliver(asked[0])
    fleet.revoke_node(node=nodes[1].node, actor=admin)
    conductor.work()
    job = Job.objects.get()
    assert job.state == "queued"
    assert job.waiting_for["what"].startswith("It needs 2 nodes")


def test_a_node_that_comes_back_is_asked_again(start, nodes):
    start()
    nodes[1].vanish()
    services.sweep_jobs()
    nodes[1].beat()
    services.sweep_jobs()
    assert states() == ["asked", "asked"]
    again = nodes[1].asked()
    assert (again.round, again.client) == (1, 1)


def test_a_node_that_restarted_unnoticed_is_asked_again_and_stopped_by_its_new_boot(start, nodes, owner):
    start()
    nodes[1].boot_id = "boot-2"
    nodes[1].beat()
    services.sweep_jobs()
    assert states() == ["asked", "asked"]
    assert nodes[1].asked().round == 1
    assert Assignment.objects.get(index=1).boot_id == "boot-2"
    services.cancel_job(job=Job.objects.get(), actor=owner)
    assert Assignment.objects.get(index=1).state == "releasing"
    assert [type(m) for m in nodes[1].messages()] == [StopAttempt]


def test_an_update_of_a_node_that_was_only_out_of_reach_counts(start, nodes, conductor):
    asked = start()
    nodes[1].vanish()
    services.sweep_jobs()
    assert nodes[1].deliver(asked[1]).accepted
    assert nodes[0].deliver(asked[0]).accepted
    conductor.work()
    assert states()[:2] == ["returned", "returned"]


@pytest.mark.parametrize(
    ("seconds", "working", "repeated"), [(9, False, False), (11, False, True), (11, True, False), (31, True, True)]
)
def test_a_message_that_may_be_lost_is_sent_again(start, nodes, seconds, working, repeated):
    asked = start()
    nodes[1].attempts = [asked[1].attempt_id] if working else []
    nodes[1].beat()
    age(Participation, "asked_at", timedelta(seconds=seconds), assignment__index=1)
    for _ in range(2):
        services.sweep_jobs()
    assert len(nodes[1].messages()) == int(repeated)
    assert nodes[0].messages() == []


def test_at_the_deadline_it_closes_with_who_is_in(start, nodes):
    asked = start()
    nodes[0].deliver(asked[0])
    services.sweep_jobs()
    assert Round.objects.get().state == "open"
    Round.objects.update(deadline_at=timezone.now())
    services.sweep_jobs()
    assert states()[:2] == ["returned", "late"]
    assert (
        Participation.objects.get(state="late").state_reason
        == "It was not in when round 1 closed, and had shown no progress."
    )
    assert not nodes[1].deliver(asked[1]).accepted


def test_at_the_deadline_without_a_quorum_the_job_fails_and_says_who_is_missing(start, nodes):
    asked = start(clients={"quorum": 1.0})
    nodes[0].deliver(asked[0])
    Round.objects.update(deadline_at=timezone.now())
    services.sweep_jobs()
    job = Job.objects.get()
    sentence = "Round 1 needed 2 updates of 2 and got 1. Missing: node-2 (no update came)."
    assert (job.state, job.state_reason) == ("failed", sentence)
    assert [Round.objects.get().state, Attempt.objects.get().state] == ["failed", "failed"]
    assert states() == ["returned", "late"]


def test_a_quorum_out_of_reach_fails_at_once(start, nodes, conductor):
    asked = start(clients={"quorum": 1.0})
    nodes[1].report(asked[1].attempt_id, "failed", "The runner was killed by signal 9.", 1)
    conductor.work()
    assert Job.objects.get().state_reason == (
        "Round 1 needed 2 updates of 2 and got 0. Missing: node-1 (no update came), "
        "node-2 (The runner was killed by signal 9)."
    )


def test_a_lost_quorum_makes_a_new_attempt_from_the_last_closed_round(start, nodes, conductor):
    asked = start(clients={"quorum": 1.0})
    for index, node in enumerate(nodes):
        node.deliver(asked[index], value=1)
    conductor.work()
    asked = [node.asked() for node in nodes]
    nodes[0].deliver(asked[0], value=1)
    nodes[1].vanish()
    services.sweep_jobs()
    assert Job.objects.get().waiting_for["then"] == "The job queues again, and goes on from the last closed round."
    age(Participation, "state_changed_at", timedelta(seconds=31), state="lost")
    services.sweep_jobs()
    job = Job.objects.get()
    assert job.state == "queued"
    assert job.state_reason.startswith("Attempt 1 ended: Round 2 needed 2 updates of 2 and got 1. Missing: node-2")
    assert job.state_reason.endswith("Trying again.")
    assert job.waiting_for["what"].startswith("It needs 2 nodes")

    nodes[1].boot_id = "boot-2"
    nodes[1].beat()
    conductor.work()
    again = [next(m for m in node.messages() if isinstance(m, TrainRound)) for node in nodes]
    assert [a.round for a in again] == [2, 2]
    assert again[0].weights.digest == asked[0].weights.digest
    assert Attempt.objects.count() == 2
    for index, node in enumerate(nodes):
        node.deliver(again[index])
    conductor.work()
    assert Job.objects.get().progress_done == 2


def test_three_attempts_in_a_row_that_lost_a_node_fail_the_job(start, nodes, conductor):
    asked = start(clients={"quorum": 1.0})
    for _ in range(3):
        nodes[0].deliver(asked[0])
        nodes[1].vanish()
        services.sweep_jobs()
        age(Participation, "state_changed_at", timedelta(seconds=31), state="lost")
        services.sweep_jobs()
        nodes[0].report(Attempt.objects.last().pk, "released")
        nodes[1].beat()
        conductor.work()
        asked = [m for m in nodes[0].messages() if isinstance(m, TrainRound)]
    job = Job.objects.get()
    assert (job.state, Attempt.objects.count()) == ("failed", 3)
    assert "The last 3 attempts ended like this" in job.state_reason


def test_a_slow_round_says_whom_it_waits_for(start, nodes):
    start()
    services.sweep_jobs()
    assert Job.objects.get().waiting_for is None
    age(Round, "opened_at", settling.WORTH_SAYING_AFTER, number=1)
    services.sweep_jobs()
    waiting = Job.objects.get().waiting_for
    assert waiting["what"] == "Round 1 waits for node-1, node-2."
    assert waiting["until"] == Round.objects.get().deadline_at.isoformat()
    assert waiting["then"] == "The job fails, unless 1 update is in by then."

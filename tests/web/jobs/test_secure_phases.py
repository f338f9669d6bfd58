"""Each wait of a masked round has an end and a reason; two workers, and one that died between two steps, do no harm."""

import re
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.web.jobs.far_end import spec_with
from tests.web.jobs.secure_end import SECURE, MaskedNode
from tests.web.jobs.test_lost_races import Killed, at_once
from webapp.fleet import services as fleet
from webapp.jobs import closing, secure_unmasking, services
from webapp.jobs.models import Attempt, Job, MaskExchange, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def begin(team, owner, make_node, conductor):
    def start(**federated: object) -> list[MaskedNode]:
        nodes = [MaskedNode(make_node(f"node-{k}"), value=k / 10) for k in range(1, 5)]
        services.submit_job(team=team, owner=owner, spec=spec_with(SECURE, federated=federated))
        conductor.work()
        return nodes

    return start


def do(nodes: list[MaskedNode]) -> None:
    for node in nodes:
        assert all(verdict.accepted for verdict in node.do_all())


def go(conductor, nodes: list[MaskedNode], phases: int) -> None:
    for _ in range(phases):
        do(nodes)
        conductor.work()


def began(seconds: float) -> None:
    """As if the phase had begun so long ago."""
    Round.objects.filter(pk=Round.objects.last().pk).update(phase_at=timezone.now() - timedelta(seconds=seconds))


def states() -> list[str]:
    return list(Participation.objects.values_list("state", flat=True))


@pytest.mark.parametrize(("phases", "word", "next_phase"), [(0, "keys", "shares"), (1, "shares", "updates")])
def test_nobody_waits_long_for_a_slow_one_when_enough_have_posted(begin, conductor, phases, word, next_phase):
    nodes = begin()
    go(conductor, nodes, phases)
    do(nodes[:3])
    began(0)
    services.sweep_jobs()
    assert (Round.objects.get().phase, Job.objects.get().waiting_for) == (word, None)
    began(6)
    services.sweep_jobs()
    wait = Job.objects.get().waiting_for
    assert wait["what"] == f"Round 1 waits for the {word} of node-4."
    assert wait["then"] == "The round goes on with the 3 clients that have posted."
    began(11)
    services.sweep_jobs()
    assert Round.objects.get().phase == next_phase
    late = Participation.objects.get(assignment__index=3)
    assert late.state == "late"
    assert re.match(rf"Its {word} for the masks of round 1 were not in after 1\d s, and the others", late.state_reason)
    assert not any(verdict.accepted for verdict in nodes[3].do_all())
    go(conductor, nodes[:3], 3 - phases)
    assert Job.objects.get().progress_done == 1
    assert list(Participation.objects.filter(round__number=1).values_list("state", flat=True)) == [
        *["returned"] * 3,
        "late",
    ]


def test_nobody_waits_for_a_node_that_is_gone_when_enough_have_posted(begin, conductor):
    nodes = begin()
    nodes[3].far.vanish()
    do(nodes[:3])
    conductor.work()
    services.sweep_jobs()
    assert Round.objects.get().phase == "shares"
    # Back later, it is not asked to begin: its keys are not in the roster.
    nodes[3].messages()
    nodes[3].far.beat()
    services.sweep_jobs()
    assert nodes[3].messages() == []
    go(conductor, nodes[:3], 3)
    services.sweep_jobs()
    assert Job.objects.get().progress_done == 1


def test_one_that_was_out_of_reach_goes_on_where_it_was(begin, conductor):
    """Its agent lived on: it is told again what the phase asks, with the same boot and the same masks."""
    nodes = begin(rounds=1)
    go(conductor, nodes, 2)
    nodes[3].messages()
    nodes[3].far.vanish()
    services.sweep_jobs()
    nodes[3].far.beat()
    services.sweep_jobs()
    assert states() == ["asked"] * 4
    go(conductor, nodes, 2)
    assert (Job.objects.get().state, set(states())) == ("finished", {"returned"})


def test_too_few_keys_queue_the_job_again_where_nodes_are_gone(begin, conductor):
    nodes = begin()
    do(nodes[:2])
    for node in nodes[2:]:
        node.far.vanish()
    services.sweep_jobs()
    past = timezone.now() - timedelta(seconds=31)
    Participation.objects.filter(state="lost").update(state_changed_at=past)
    services.sweep_jobs()
    attempt = Attempt.objects.get()
    assert attempt.state == "failed"
    assert attempt.state_reason.startswith(
        "Round 1 needed the keys of 3 clients of 4 for its masks and got 2. Missing: node-3 (node-3 stopped answering"
    )
    assert Job.objects.get().state == "queued"


def test_too_few_shares_fail_the_job_where_clients_refuse(begin, conductor):
    nodes = begin()
    go(conductor, nodes, 1)
    do(nodes[:2])
    for node in nodes[2:]:
        reason = "The identity of node-1 has changed."
        node.far.report(node.asked.attempt_id, "refused", reason, round_number=1)
    conductor.work()
    job = Job.objects.get()
    assert job.state == "failed"
    assert job.state_reason == (
        "Round 1 needed the shares of 3 clients of 4 for its masks and got 2. Missing: node-3 (The identity of node-1 has "
        "changed), node-4 (The identity of node-1 has changed)."
    )
    assert not MaskExchange.objects.exists()


def test_too_few_updates_queue_the_job_again_where_nodes_restarted(begin, conductor):
    nodes = begin()
    go(conductor, nodes, 2)
    do(nodes[:2])
    for node in nodes[2:]:
        node.far.boot_id = "boot-2"
        node.far.beat()
    services.sweep_jobs()
    assert Attempt.objects.first().state_reason.startswith("Round 1 needed 3 updates of 4 and got 2. Missing: node-3")


def test_too_few_answers_queue_the_job_again(begin, conductor):
    nodes = begin()
    go(conductor, nodes, 3)
    do(nodes[:2])
    began(6)
    services.sweep_jobs()
    wait = Job.objects.get().waiting_for
    assert wait["what"] == "Round 1 waits for node-3, node-4 to unmask the sum: 2 of 3 answered."
    began(16)
    services.sweep_jobs()
    assert Attempt.objects.first().state_reason == (
        "Round 1 needed 3 of the 4 clients whose updates are in to unmask their sum, and 2 answered. "
        "Missing: node-3 (no answer came), node-4 (no answer came)."
    )
    assert Job.objects.get().state in ("queued", "running")


def test_nobody_waits_for_answers_of_nodes_that_forgot(begin, conductor, admin):
    nodes = begin()
    go(conductor, nodes, 3)
    nodes[3].far.boot_id = "boot-2"
    nodes[3].far.beat()
    fleet.revoke_node(node=nodes[2].far.node, actor=admin)
    services.sweep_jobs()
    assert Attempt.objects.first().state_reason.endswith(
        "and 0 answered. Missing: node-1 (no answer came), node-2 (no answer came), node-3 (Revoked by admin), node-4 (it "
        "restarted)."
    )


def test_a_survivor_whose_message_was_lost_is_asked_again(begin, conductor):
    nodes = begin(rounds=1)
    go(conductor, nodes, 3)
    lost = [node.messages() for node in nodes]
    Participation.objects.update(asked_at=timezone.now())
    services.sweep_jobs()
    assert nodes[0].messages() == [], "not before its time"
    Participation.objects.update(asked_at=timezone.now() - secure_unmasking.ASK_AGAIN_AFTER)
    services.sweep_jobs()
    services.sweep_jobs()
    assert [node.messages() for node in nodes] == lost
    for node, (message,) in zip(nodes, lost, strict=True):
        assert node.do(message).accepted
    conductor.work()
    assert Job.objects.get().state == "finished"


def test_repeats_of_a_masked_round_are_made_of_one_look_at_all_posts(begin, conductor):
    """Each message of the phase is made of all clients' shares: read once for each repeat, they were n^3 in all."""
    nodes = begin(rounds=1)
    go(conductor, nodes, 2)
    lost = [node.messages() for node in nodes]
    Participation.objects.update(asked_at=timezone.now() - timedelta(seconds=31))
    with CaptureQueriesContext(connection) as captured:
        services.sweep_jobs()
    assert [node.messages() for node in nodes] == lost
    selects = [q["sql"] for q in captured if q["sql"].startswith("SELECT") and '"jobs_maskexchange"."keys"' in q["sql"]]
    assert not selects
    assert sum('"jobs_maskexchange"."sealed",' in query["sql"] for query in captured) <= 1
    assert not any('"jobs_maskexchange"."unmasking"' in query["sql"] for query in captured)


def test_a_share_that_a_client_could_not_open_is_had_from_the_others(begin, conductor):
    nodes = begin(rounds=1)
    go(conductor, nodes, 1)
    do(nodes[:3])
    (message,) = nodes[3].messages()
    shares = nodes[3].session.seal_shares(message.roster)
    garbled = shares.model_copy(update={"sealed": {**shares.sealed, 0: "AAAA"}})
    assert services.accept_shares(**nodes[3].where(), shares=garbled).accepted
    conductor.work()
    go(conductor, nodes, 1)
    do(nodes[:3])
    conductor.work()
    services.sweep_jobs()
    assert Round.objects.get().phase == "unmasking", "three answers have two shares of node-4's masks"
    go(conductor, nodes[3:], 1)
    assert Job.objects.get().state == "finished"


def test_wrong_shares_end_the_attempt_and_not_the_job(begin, conductor):
    nodes = begin()
    go(conductor, nodes, 3)
    do(nodes[:2])
    (message,) = nodes[2].messages()
    answer = nodes[2].session.answer(message.survivors)
    wrong = answer.model_copy(update={"self_masks": {**answer.self_masks, 0: "AAAA"}})
    assert services.accept_unmasking(**nodes[2].where(), unmasking=wrong).accepted
    services.sweep_jobs()
    attempt = Attempt.objects.order_by("number").first()
    assert attempt.state == "failed"
    assert attempt.state_reason.startswith("The server could not unmask the sum of round 1: The masks of node-1 cannot")
    assert Job.objects.get().state in ("queued", "running")


@pytest.mark.parametrize("phases", [0, 1, 2])
def test_two_workers_move_a_phase_once(begin, conductor, phases):
    nodes = begin(rounds=1)
    go(conductor, nodes, phases)
    do(nodes)
    conductor.broker.delete("conductor")
    attempt = Attempt.objects.get()
    at_once(*[lambda: services.advance_attempt(attempt_id=attempt.pk)] * 3)
    assert [len(node.messages()) for node in nodes] == [1] * 4


def test_posts_at_once_are_all_taken(begin, conductor):
    nodes = begin(rounds=1)
    for phase in ("shares", "updates"):
        asked = [(node, message) for node in nodes for message in node.messages()]
        verdicts = at_once(*[partial(node.do, message) for node, message in asked])
        assert [verdict.accepted for verdict in verdicts] == [True] * 4
        conductor.work()
        assert Round.objects.get().phase == phase


def test_two_workers_compute_one_sum(begin, conductor):
    nodes = begin(rounds=1)
    go(conductor, nodes, 3)
    do(nodes)
    conductor.broker.delete("conductor")
    attempt = Attempt.objects.get()
    at_once(*[lambda: services.advance_attempt(attempt_id=attempt.pk)] * 3)
    assert Round.objects.get().state == "closed"
    assert Job.objects.get().state == "finished"


def test_a_worker_killed_while_it_unmasks_is_replaced(begin, conductor, monkeypatch):
    nodes = begin(rounds=1)
    go(conductor, nodes, 3)
    do(nodes)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(closing, "read_masks", die)
        with pytest.raises(Killed):
            conductor.work()
    round_ = Round.objects.get()
    assert (round_.state, round_.phase) == ("closing", "")
    services.sweep_jobs()
    assert Round.objects.get().state == "closing", "the other may still be at it"
    began(11)
    services.sweep_jobs()
    assert Job.objects.get().state == "finished"


def test_a_cancel_forgets_the_masks(begin, conductor, owner):
    go(conductor, begin(), 2)
    services.cancel_job(job=Job.objects.get(), actor=owner)
    assert not MaskExchange.objects.exists()

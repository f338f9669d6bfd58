"""Two that tell the same rounds, a pack against a cancel, and a pack against the end: one result."""

from __future__ import annotations

import pytest

from tests.web.jobs.far_end import FarNode
from tests.web.jobs.simulator import SIMULATED, Simulator, begin
from tests.web.jobs.test_lost_races import at_once
from webapp.blobs import services as blobs
from webapp.jobs import services, simulated_rounds
from webapp.jobs.models import Artifact, Attempt, Job, Round, Stray

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(make_node) -> FarNode:
    return make_node("node-1")


@pytest.fixture
def rank_0(team, owner, node, conductor) -> Simulator:
    services.submit_job(team=team, owner=owner, spec=SIMULATED)
    conductor.work()
    simulator = begin(node)
    simulator.start()
    return simulator


def between_check_and_record(monkeypatch, act) -> None:
    """Let `act` happen once a pack has been found good, and before it is recorded."""
    check = simulated_rounds._why_bad

    def checked(*arguments):
        reason = check(*arguments)
        monkeypatch.setattr(simulated_rounds, "_why_bad", check)
        act()
        return reason

    monkeypatch.setattr(simulated_rounds, "_why_bad", checked)


def test_two_that_begin_send_the_ranks_once(team, owner, node):
    services.submit_job(team=team, owner=owner, spec=SIMULATED)
    services.schedule_jobs()
    attempt_id = Attempt.objects.get().pk
    at_once(*[lambda: services.advance_attempt(attempt_id=attempt_id)] * 4)
    begin(node)


def test_the_same_pack_twice_at_once_is_recorded_once(rank_0):
    offer = rank_0.pack(1, 3)
    verdicts = at_once(*[lambda: rank_0.post(offer)] * 4)
    assert [verdict.accepted for verdict in verdicts] == [True] * 4
    assert list(Round.objects.values_list("number", flat=True)) == [1, 2, 3]
    assert Attempt.objects.get().weights_digest == offer.weights
    assert blobs.exists(offer.weights)


def test_a_pack_that_was_overtaken_is_accepted_without_effect(rank_0, monkeypatch):
    slow, fast = rank_0.pack(1, 2), rank_0.pack(1, 3)
    between_check_and_record(monkeypatch, lambda: rank_0.post(fast))
    assert rank_0.post(slow).accepted
    assert Round.objects.count() == 3
    assert Attempt.objects.get().weights_digest == fast.weights
    assert Job.objects.get().progress_done == 3


def test_a_cancel_that_was_first_wins(rank_0, monkeypatch, owner):
    offer = rank_0.pack(1, 2)
    between_check_and_record(monkeypatch, lambda: services.cancel_job(job=Job.objects.get(), actor=owner))
    verdict = rank_0.post(offer)
    assert not verdict.accepted
    assert verdict.reason.endswith("has ended: Cancelled by owner.")
    assert not Round.objects.exists()
    assert (Job.objects.get().progress_done, Stray.objects.get().count) == (0, 1)


def test_weights_that_vanish_before_they_are_recorded_are_asked_for_again(rank_0, monkeypatch):
    offer = rank_0.pack(1, 2)
    between_check_and_record(monkeypatch, lambda: blobs.delete(offer.weights))
    with pytest.raises(FileNotFoundError):  # the node's request breaks, and it asks again
        rank_0.post(offer)
    assert rank_0.post(offer).reason == "The weights' bytes are not on the server: send them first."
    assert rank_0.post(rank_0.pack(1, 2)).accepted


def test_a_word_of_the_end_read_before_its_last_rounds_ends_nothing(rank_0, node, conductor, monkeypatch):
    """The rows of an attempt are read one after the other: its last pack and its `finished` may come in between."""
    attempt = Attempt.objects.select_related("job").get()
    assert rank_0.post(rank_0.pack(1, 5)).accepted
    node.report(attempt.pk, "finished")
    from webapp.jobs.simulation import advance_simulation

    advance_simulation(attempt)  # with what was true before
    assert Job.objects.get().state == "finished"


def test_two_that_finish_leave_one_model(rank_0, node):
    assert rank_0.post(rank_0.pack(1, 5)).accepted
    attempt_id = rank_0.asked.attempt_id
    node.report(attempt_id, "finished")
    at_once(*[lambda: services.advance_attempt(attempt_id=attempt_id)] * 3)
    assert Artifact.objects.count() == 1
    assert Job.objects.get().state == "finished"

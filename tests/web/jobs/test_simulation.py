"""A simulated job from submission to its model: ranks go out with a start, rounds come in packs."""

from datetime import timedelta

import pytest
from django.db.models import F

from tests.web.jobs.far_end import FarNode, spec_with
from tests.web.jobs.simulator import SIMULATED, Simulator, begin
from trainer.protocol import ReceiveModel, StopAttempt
from webapp.blobs import services as blobs
from webapp.jobs import services
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Round, Stray

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(make_node) -> FarNode:
    return make_node("node-1")


@pytest.fixture
def rank_0(team, owner, node, conductor) -> Simulator:
    """A running simulation, whose ranks have been sent and taken."""
    services.submit_job(team=team, owner=owner, spec=SIMULATED)
    conductor.work()
    simulator = begin(node)
    simulator.start()
    return simulator


def test_its_ranks_go_out_with_the_first_weights(rank_0):
    asked, attempt = rank_0.asked, Attempt.objects.get()
    assert (asked.attempt_id, asked.group_rank, asked.num_groups, asked.spec) == (attempt.pk, 0, 1, SIMULATED)
    assert (asked.start.round, asked.start.last_round, asked.start.memory) == (1, 5, None)
    assert (asked.start.history, asked.start.resumed_at) == ([], 0)
    assert asked.start.weights.digest == attempt.weights_digest
    assert blobs.exists(attempt.weights_digest)
    assert Assignment.objects.get().slots == 2
    assert not Round.objects.exists()


def test_it_finishes_with_the_model_on_its_nodes(rank_0, node, conductor):
    assert rank_0.post(rank_0.pack(1, 3)).accepted
    assert rank_0.post(rank_0.pack(4, 5)).accepted
    conductor.work()
    services.sweep_jobs()
    assert Job.objects.get().state == "running"  # the ranks may still send the ends of their curves
    node.report(rank_0.asked.attempt_id, "finished")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason, job.progress_done) == ("finished", "All 5 rounds closed.", 5)
    model = Artifact.objects.get()
    assert model.name == "model.safetensors"
    kinds = {type(message): message for message in node.messages()}
    assert set(kinds) == {ReceiveModel, StopAttempt}
    assert kinds[ReceiveModel].weights.digest == model.digest
    node.report(rank_0.asked.attempt_id, "released")
    assert Assignment.objects.get().state == "released"
    assert not Stray.objects.exists()


def test_after_the_last_round_a_silent_node_holds_up_nothing(rank_0, conductor):
    assert rank_0.post(rank_0.pack(1, 5)).accepted
    Round.objects.update(state_changed_at=F("state_changed_at") - timedelta(seconds=16))
    services.sweep_jobs()
    assert Job.objects.get().state == "finished"


@pytest.mark.parametrize("how", ["vanish", "break"])
def test_after_the_last_round_a_lost_or_broken_node_harms_nothing(rank_0, node, conductor, how):
    assert rank_0.post(rank_0.pack(1, 5)).accepted
    if how == "vanish":
        node.vanish()
    else:
        node.report(rank_0.asked.attempt_id, "failed", "Rank 1 broke.")
    services.sweep_jobs()
    assert Job.objects.get().state == "finished"


def test_ranks_that_end_without_their_rounds_fail_the_job(rank_0, node, conductor):
    assert rank_0.post(rank_0.pack(1, 3)).accepted
    node.report(rank_0.asked.attempt_id, "finished")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == (
        "failed",
        "All ranks ended well, but round 4 of 5 never came: look at the log of rank 0.",
    )


def test_a_broken_rank_fails_the_job_with_its_sentence(rank_0, node, conductor):
    node.report(rank_0.asked.attempt_id, "failed", "Rank 1 ended with exit code 1.")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == ("failed", "node-1 failed: Rank 1 ended with exit code 1.")


def test_a_lost_node_makes_an_attempt_that_goes_on_from_the_last_recorded_round(rank_0, node, conductor):
    offer = rank_0.pack(1, 3)
    assert rank_0.post(offer).accepted
    node.vanish()
    services.sweep_jobs()
    job = Job.objects.get()
    assert (job.state, job.progress_done, job.num_retries) == ("queued", 3, 1)
    node.boot_id = "boot-2"
    node.beat()
    conductor.work()
    second = begin(node)
    start = second.asked.start
    assert (start.round, start.last_round, start.weights.digest) == (4, 5, offer.weights)
    assert not rank_0.post(rank_0.pack(4, 5)).accepted  # the old attempt is fenced off
    assert second.post(second.pack(4, 5)).accepted
    job.refresh_from_db()
    assert (job.progress_done, job.num_retries) == (5, 0)
    assert list(Round.objects.values_list("attempt__number", "number")) == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]


def test_what_was_recorded_counts_although_its_answer_was_lost(rank_0, node, conductor):
    offer = rank_0.pack(1, 5)
    assert rank_0.post(offer).accepted
    assert rank_0.post(offer).accepted
    node.report(rank_0.asked.attempt_id, "finished")
    conductor.work()
    assert Job.objects.get().state == "finished"
    assert rank_0.post(offer).accepted
    assert Round.objects.count() == 5
    assert not Stray.objects.exists()


def test_ranks_whose_message_may_be_lost_are_sent_again(team, owner, node, conductor):
    services.submit_job(team=team, owner=owner, spec=SIMULATED)
    conductor.work()
    first = begin(node).asked
    Assignment.objects.update(sent_at=F("sent_at") - timedelta(seconds=11))
    services.sweep_jobs()
    services.sweep_jobs()
    assert begin(node).asked == first


def test_a_round_that_does_not_come_is_said_and_has_an_end(rank_0, node):
    Attempt.objects.update(started_at=F("started_at") - timedelta(seconds=30))
    services.sweep_jobs()
    job = Job.objects.get()
    assert job.waiting_for["what"] == "Round 1 is being simulated on node-1."
    assert job.waiting_for["then"] == "The job queues again, and goes on from the last closed round."
    before = job.waiting_for
    services.sweep_jobs()
    job.refresh_from_db()
    assert job.waiting_for == before
    assert rank_0.post(rank_0.pack(1, 1)).accepted
    assert Job.objects.get().waiting_for is None
    Round.objects.update(state_changed_at=F("state_changed_at") - timedelta(seconds=1201))
    services.sweep_jobs()
    attempt = Attempt.objects.first()
    assert (attempt.state, attempt.state_reason) == (
        "failed",
        "Round 2 did not come from node-1 within 1,200 s, which is twice round_deadline_seconds.",
    )


def test_a_gang_shares_it_out(team, owner, nodes, conductor):
    spec = spec_with(SIMULATED, federated={"clients": {"simulate": 20, "per_round": 4, "num": 2}})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    one, two = (begin(node).asked for node in nodes)
    assert (one.group_rank, two.group_rank, two.num_groups) == (0, 1, 2)
    assert one.start == two.start
    nodes[1].vanish()
    services.sweep_jobs()
    assert Job.objects.get().state == "queued"


def test_weights_that_are_gone_are_said(rank_0, node, conductor):
    assert rank_0.post(rank_0.pack(1, 2)).accepted
    services.cancel_job(job=Job.objects.get(), actor=Job.objects.get().owner)
    node.report(rank_0.asked.attempt_id, "released")
    blobs.delete(Attempt.objects.get().weights_digest)
    services.resume_job(job=Job.objects.get(), actor=Job.objects.get().owner)
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == (
        "failed",
        "The weights to start from are gone from the server's store: clone the job to start anew.",
    )

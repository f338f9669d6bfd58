"""A distributed job from submission to its model, and what becomes of it when a node goes."""

from datetime import timedelta

import numpy as np
import pytest
from django.db.models import F

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED, FarNode
from trainer.protocol import ArtifactOffer, RunRanks, StopAttempt
from trainer.weights import pack_weights
from webapp.blobs import services as blobs
from webapp.jobs import services
from webapp.jobs.models import Artifact, Assignment, Attempt, Job
from webapp.telemetry.services import record_values

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def attempt(team, owner, nodes, conductor) -> Attempt:
    """An attempt whose ranks have been sent, and taken from the queues."""
    services.submit_job(team=team, owner=owner, spec=DISTRIBUTED)
    conductor.work()
    for rank, node in enumerate(nodes):
        (message,) = node.messages()
        assert isinstance(message, RunRanks)
        assert (message.group_rank, message.num_groups, message.spec) == (rank, 2, DISTRIBUTED)
    return Attempt.objects.get()


def model(value: float = 1.0) -> ArtifactOffer:
    data = pack_weights({"w": np.full(3, value, np.float32)})
    return ArtifactOffer(name="model.safetensors", digest=blobs.save_bytes(data).digest)


def start(attempt: Attempt, *nodes: FarNode) -> None:
    for node in nodes:
        node.attempts = [attempt.pk]
        node.beat()
        node.report(attempt.pk, "started")


def test_it_finishes_when_all_ranks_have_and_the_model_is_there(attempt, nodes, conductor):
    for node in nodes:
        node.report(attempt.pk, "started")
    assert not Assignment.objects.filter(started_at=None).exists()
    assert services.accept_artifact(node=nodes[0].node, attempt_id=attempt.pk, offer=model()).accepted
    nodes[0].report(attempt.pk, "finished")
    conductor.work()
    assert Job.objects.get().state == "running"
    nodes[1].report(attempt.pk, "finished")
    nodes[1].report(attempt.pk, "finished")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason, job.progress_done) == ("finished", "All ranks ended well.", 4)
    assert Artifact.objects.get().name == "model.safetensors"
    assert [type(m) for node in nodes for m in node.messages()] == [StopAttempt, StopAttempt]
    for node in nodes:
        node.report(attempt.pk, "released")
    assert set(Assignment.objects.values_list("state", flat=True)) == {"released"}


def test_without_a_model_it_did_not_finish(attempt, nodes, conductor):
    for node in nodes:
        node.report(attempt.pk, "finished")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == (
        "failed",
        "All ranks ended well, but rank 0 delivered no model: look at its log.",
    )


@pytest.mark.parametrize(("kind", "verb"), [("failed", "failed"), ("refused", "refused")])
def test_a_broken_rank_fails_the_job_with_its_sentence(attempt, nodes, conductor, kind, verb):
    nodes[1].report(attempt.pk, kind, "Rank 1 ended with exit code 1.")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == ("failed", f"node-2 {verb}: Rank 1 ended with exit code 1.")
    assert [type(m) for node in nodes for m in node.messages()] == [StopAttempt, StopAttempt]


def test_progress_is_no_end(attempt, nodes):
    nodes[0].report(attempt.pk, "progress")
    assert Assignment.objects.get(index=0).state == "active"


def test_a_report_outlives_a_conductor_that_was_down(attempt, nodes, broker):
    nodes[1].report(attempt.pk, "failed", "Rank 1 broke.")
    broker.delete("conductor")
    services.sweep_jobs()
    assert Job.objects.get().state == "failed"


def test_a_lost_node_makes_a_new_attempt_until_three_were_lost(attempt, nodes, conductor):
    for number in (1, 2, 3):
        nodes[1].vanish()
        services.sweep_jobs()
        job = Job.objects.get()
        if number < 3:
            assert job.state == "queued"
            assert job.state_reason == (
                f"Attempt {number} ended: node-2 stopped answering: its last sign came 15 s ago. Trying again."
            )
            nodes[0].report(Attempt.objects.last().pk, "released")
            nodes[1].beat()
            conductor.work()
            assert Attempt.objects.count() == number + 1
    assert job.state == "failed"
    assert "The last 3 attempts ended like this: resume the job when its nodes are well." in job.state_reason


def test_a_node_that_restarted_makes_a_new_attempt(attempt, nodes):
    nodes[0].boot_id = "boot-2"
    nodes[0].beat()
    services.sweep_jobs()
    assert list(Attempt.objects.values_list("state", "state_reason")) == [
        ("failed", "node-1 restarted."),
        ("running", "Started on node-1, node-2."),
    ]


def test_ranks_whose_message_may_be_lost_are_sent_again(attempt, nodes):
    start(attempt, nodes[0])
    Assignment.objects.update(sent_at=F("sent_at") - timedelta(seconds=11))
    for _ in range(2):
        services.sweep_jobs()
    assert nodes[0].messages() == []
    assert [type(m) for m in nodes[1].messages()] == [RunRanks]


def test_ranks_that_no_node_takes_make_a_new_attempt(attempt, nodes):
    start(attempt, nodes[0])
    Assignment.objects.update(state_changed_at=F("state_changed_at") - timedelta(seconds=44))
    nodes[1].beat()
    services.sweep_jobs()
    assert Attempt.objects.get(pk=attempt.pk).state == "running"
    Assignment.objects.update(state_changed_at=F("state_changed_at") - timedelta(seconds=1))
    services.sweep_jobs()
    attempt.refresh_from_db()
    assert (attempt.state, attempt.state_reason) == ("failed", "node-2 did not take its ranks within 45 s.")


def test_a_node_that_dropped_its_ranks_without_a_word_makes_a_new_attempt(attempt, nodes):
    start(attempt, *nodes)
    services.sweep_jobs()
    nodes[1].attempts = []
    nodes[1].beat()
    services.sweep_jobs()
    left_out = Assignment.objects.filter(unnamed_since__isnull=False)
    assert left_out.get().node == nodes[1].node
    left_out.update(unnamed_since=F("unnamed_since") - timedelta(seconds=10))
    services.sweep_jobs()
    assert Attempt.objects.get(pk=attempt.pk).state == "running", (
        "10 s have passed, but nobody has heard the node since"
    )
    nodes[1].beat()
    services.sweep_jobs()
    attempt.refresh_from_db()
    assert attempt.state_reason == "node-2 stopped working on its ranks without a report: look at its agent's log."
    assert list(Attempt.objects.values_list("state", flat=True)) == ["failed", "running"]


def test_a_node_that_names_its_ranks_again_goes_on(attempt, nodes):
    start(attempt, *nodes)
    nodes[1].attempts = []
    nodes[1].beat()
    services.sweep_jobs()
    start(attempt, nodes[1])
    Assignment.objects.filter(unnamed_since__isnull=False).update(
        unnamed_since=F("unnamed_since") - timedelta(seconds=60)
    )
    services.sweep_jobs()
    assert Attempt.objects.get().state == "running"
    assert not Assignment.objects.filter(unnamed_since__isnull=False).exists()


def test_a_node_that_still_runs_what_it_was_let_off_is_stopped_again(attempt, nodes, owner):
    start(attempt, *nodes)
    services.cancel_job(job=Job.objects.get(), actor=owner)
    for node in nodes:
        node.messages()
        node.report(attempt.pk, "released")
    nodes[0].attempts = []
    for node in nodes:
        node.beat()
    services.sweep_jobs()
    assert [node.messages() for node in nodes] == [[], []], "its last heartbeat may be older than its report"
    long_ago = timedelta(seconds=6)
    Assignment.objects.update(state_changed_at=F("state_changed_at") - long_ago, sent_at=F("sent_at") - long_ago)
    for _ in range(2):
        services.sweep_jobs()
    assert [node.messages() for node in nodes] == [[], [StopAttempt(attempt_id=attempt.pk)]]


def test_a_node_that_names_what_cannot_be_is_left_alone(nodes):
    nodes[0].attempts = [-1, 0, 999, 2**70]
    nodes[0].beat()
    services.sweep_jobs()
    assert nodes[0].messages() == []


def test_epochs_are_counted_from_what_rank_0_measures(attempt):
    for epoch, loss in enumerate([0.9, 0.5], start=1):
        record_values(attempt_id=attempt.pk, values={("test/loss", "rank 0"): (10 * epoch, loss)})
    record_values(attempt_id=attempt.pk, values={("test/loss", "rank 1"): (10, 1.0)})
    services.sweep_jobs()
    job = Job.objects.get()
    assert (job.progress_done, job.progress_total) == (2, 4)


def test_artifacts_are_recorded_once(attempt, nodes):
    for _ in range(2):
        assert services.accept_artifact(node=nodes[0].node, attempt_id=attempt.pk, offer=model()).accepted
    assert Artifact.objects.count() == 1
    another = services.accept_artifact(node=nodes[0].node, attempt_id=attempt.pk, offer=model(2.0))
    assert another.reason == "Attempt 1 has another file model.safetensors already."


def test_artifacts_of_strangers_and_of_the_dead_are_refused(attempt, nodes, make_node, owner):
    foreign = make_node("node-3")
    verdict = services.accept_artifact(node=foreign.node, attempt_id=attempt.pk, offer=model())
    assert verdict.reason == f"node-3 has no part in attempt {attempt.pk}."
    services.cancel_job(job=Job.objects.get(), actor=owner)
    assert not services.accept_artifact(node=nodes[0].node, attempt_id=attempt.pk, offer=model()).accepted
    assert not Artifact.objects.exists()


def test_only_rank_0_of_a_distributed_job_leaves_a_model(attempt, nodes, team, owner, conductor):
    """A client's file of that name would stand in the way of the model that the server writes at the end."""
    verdict = services.accept_artifact(node=nodes[1].node, attempt_id=attempt.pk, offer=model())
    assert verdict.reason == f"node-2 does not host rank 0 of attempt {attempt.pk}."
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    federated = Attempt.objects.last()
    assert not services.accept_artifact(node=nodes[0].node, attempt_id=federated.pk, offer=model()).accepted
    assert not Artifact.objects.exists()


def test_an_artifact_that_is_no_safetensors_file_is_refused(attempt, nodes):
    offer = ArtifactOffer(name="model.safetensors", digest=blobs.save_bytes(b"junk").digest)
    verdict = services.accept_artifact(node=nodes[0].node, attempt_id=attempt.pk, offer=offer)
    assert verdict.reason.startswith("model.safetensors is not a safetensors file")
    missing = ArtifactOffer(name="model.safetensors", digest="0" * 64)
    assert (
        "send them first" in services.accept_artifact(node=nodes[0].node, attempt_id=attempt.pk, offer=missing).reason
    )

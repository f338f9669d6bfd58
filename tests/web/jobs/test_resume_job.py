from datetime import timedelta

import pytest
from django.utils import timezone

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED, spec_with
from trainer.protocol import ReceiveModel, TrainRound, UpdateOffer
from webapp.core.errors import Refusal
from webapp.jobs import services
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Round

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_federated_job_goes_on_from_its_last_closed_round(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    for node in nodes:
        node.deliver(node.asked(), value=1)
    conductor.work()
    second = [node.asked() for node in nodes]
    late = UpdateOffer(digest=nodes[0].update_for(second[0].weights).digest, num_examples=100)
    services.cancel_job(job=job, actor=owner)
    for node in nodes:
        node.report(second[0].attempt_id, "released")
    services.resume_job(job=job, actor=owner)
    assert (job.state, job.state_reason) == ("queued", "Resumed by owner, from round 1.")
    conductor.work()
    assert Attempt.objects.count() == 2
    for number in (2, 3):
        asked = [next(m for m in node.messages() if isinstance(m, TrainRound)) for node in nodes]
        assert [a.round for a in asked] == [number, number]
        if number == 2:
            assert asked[0].weights.digest == second[0].weights.digest
            assert asked[0].attempt_id != second[0].attempt_id
        assert not nodes[0].offer(second[0], late).accepted, "an update of the attempt before"
        for index, node in enumerate(nodes):
            node.deliver(asked[index], value=1)
        conductor.work()
    assert Job.objects.get().state == "finished"
    numbers = Round.objects.order_by("attempt__number", "number").values_list("attempt__number", "number", "state")
    assert list(numbers) == [(1, 1, "closed"), (1, 2, "failed"), (2, 2, "closed"), (2, 3, "closed")]


def test_a_distributed_job_starts_anew(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=DISTRIBUTED)
    conductor.work()
    Job.objects.update(progress_done=3)
    services.cancel_job(job=job, actor=owner)
    job.refresh_from_db()
    services.resume_job(job=job, actor=owner)
    job.refresh_from_db()
    assert (job.state_reason, job.progress_done) == ("Resumed by owner, from the start.", 0)


@pytest.mark.parametrize("state", ["queued", "running", "finished"])
def test_only_failed_and_cancelled_jobs_are_resumed(team, owner, state):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    Job.objects.update(state=state)
    job.refresh_from_db()
    with pytest.raises(Refusal, match="only a failed or cancelled job can be resumed"):
        services.resume_job(job=job, actor=owner)


def test_the_second_of_two_that_resume_hears_that_it_is_queued(team, owner):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    services.cancel_job(job=job, actor=owner)
    first, second = Job.objects.get(), Job.objects.get()
    services.resume_job(job=first, actor=owner)
    with pytest.raises(Refusal, match="is queued"):
        services.resume_job(job=second, actor=owner)


def test_a_teammate_may_not(team, owner, teammate):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    services.cancel_job(job=job, actor=owner)
    with pytest.raises(Refusal) as refusal:
        services.resume_job(job=job, actor=teammate)
    assert refusal.value.status == 403


# --- more rounds ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(team, owner, nodes, conductor) -> Job:
    """A job of one round that has ended, and its nodes have stopped."""
    job = services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"rounds": 1}))
    conductor.work()
    train(nodes, conductor)
    job.refresh_from_db()
    assert job.state == "finished"
    return job


def train(nodes, conductor, **offer) -> list[TrainRound]:
    """Answer the open round; free the slots where it was the last one."""
    asked = [next(m for m in node.messages() if isinstance(m, TrainRound)) for node in nodes]
    for node, message in zip(nodes, asked, strict=True):
        assert node.deliver(message, value=1, **offer).accepted
    conductor.work()
    for node in nodes:
        node.report(asked[0].attempt_id, "released")
    conductor.work()
    return asked


def test_a_finished_job_gets_more_rounds(finished, owner, nodes, conductor):
    model = Artifact.objects.get()
    services.resume_job(job=finished, actor=owner, rounds=2)
    assert finished.state_reason == "Resumed by owner, from round 1, with 2 more rounds: 3 in all."
    assert (finished.progress_done, finished.progress_total) == (1, 3)
    conductor.work()
    first = train(nodes, conductor)
    assert [(message.round, message.evaluate) for message in first] == [(2, True)] * 2
    assert first[0].weights.digest == Attempt.objects.first().weights_digest
    train(nodes, conductor)
    job = Job.objects.get()
    assert (job.state, job.state_reason) == ("finished", "All 3 rounds closed.")
    assert list(Round.objects.values_list("attempt__number", "number")) == [(1, 1), (2, 2), (2, 3)]
    assert Artifact.objects.count() == 2
    assert Artifact.objects.exclude(pk=model.pk).get().digest != model.digest
    assert job.spec.federated.rounds == 1, "the spec is what the user submitted"


def test_the_old_model_does_not_come_after_the_new_one(finished, owner, nodes, conductor):
    services.resume_job(job=finished, actor=owner, rounds=1)
    conductor.work()
    train(nodes, conductor)
    new = Artifact.objects.latest("pk")
    Assignment.objects.update(model_sent_at=timezone.now() - timedelta(minutes=2))
    for node in nodes:
        node.messages()
    services.sweep_jobs()
    for node in nodes:
        assert [m.weights.digest for m in node.messages() if isinstance(m, ReceiveModel)] == [new.digest]


def test_a_failed_job_gets_more_rounds_as_well(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    services.cancel_job(job=job, actor=owner)
    services.resume_job(job=job, actor=owner, rounds=1)
    assert job.state_reason == "Resumed by owner, from the start, with 1 more round: 4 in all."
    assert (job.progress_done, job.progress_total) == (0, 4)


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        (
            None,
            r"is finished: only a failed or cancelled job can be resumed\. Say how many rounds more it should train\.",
        ),
        (0, r"'rounds' is the number of rounds to add, at least 1, not 0\."),
        (100_000, r"cannot have 100,001 rounds\. 'rounds' is a whole number from 1 to 100,000, not 100001\."),
    ],
)
def test_what_a_finished_job_is_not_resumed_with(finished, owner, rounds, sentence):
    with pytest.raises(Refusal, match=sentence):
        services.resume_job(job=finished, actor=owner, rounds=rounds)
    assert Job.objects.get().state == "finished"


def test_a_job_that_runs_gets_no_more_rounds(team, owner):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    with pytest.raises(Refusal, match="is queued: only a job that has ended gets more rounds"):
        services.resume_job(job=job, actor=owner, rounds=1)


def test_one_shot_fusion_has_one_round(team, owner, nodes, conductor):
    spec = spec_with(FEDERATED, federated={"rounds": 1, "strategy": {"name": "one_shot"}})
    job = services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    train(nodes, conductor)
    with pytest.raises(Refusal, match=r"cannot have 2 rounds\. One-shot fusion has one round"):
        services.resume_job(job=job, actor=owner, rounds=1)


def test_a_distributed_job_has_no_rounds(team, owner):
    job = services.submit_job(team=team, owner=owner, spec=DISTRIBUTED)
    services.cancel_job(job=job, actor=owner)
    with pytest.raises(Refusal, match="is distributed and has no rounds"):
        services.resume_job(job=job, actor=owner, rounds=1)


def test_the_second_of_two_that_add_rounds_hears_that_it_is_queued(finished, owner):
    first, second = Job.objects.get(), Job.objects.get()
    services.resume_job(job=first, actor=owner, rounds=1)
    with pytest.raises(Refusal, match="is queued"):
        services.resume_job(job=second, actor=owner, rounds=1)
    assert Job.objects.get().progress_total == 2


def test_a_job_that_stopped_early_goes_on_when_it_is_told_to(team, owner, nodes, conductor):
    spec = spec_with(FEDERATED, federated={"rounds": 9, "stop": {"patience": 1}})
    job = services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    for _ in range(2):
        train(nodes, conductor, metrics={"test/loss": 1.0})
    job.refresh_from_db()
    assert job.state_reason == "Stopped after round 2 of 9: test/loss has not improved for 1 round."
    services.resume_job(job=job, actor=owner, rounds=5)
    conductor.work()
    train(nodes, conductor, metrics={"test/loss": 0.5})
    assert Job.objects.get().state == "running"
    train(nodes, conductor, metrics={"test/loss": 0.5})
    assert Job.objects.get().state_reason == "Stopped after round 4 of 7: test/loss has not improved for 1 round."


@pytest.mark.parametrize(
    ("stop", "first", "more", "sentence"),
    [
        ({"target": 1.0}, [2.0, 0.5], [0.5, 0.5, 0.5], "All 5 rounds closed."),
        (
            {"patience": 2},
            [1.0, 1.0],
            [1.0, 1.0],
            "Stopped after round 4 of 5: test/loss has not improved for 2 rounds.",
        ),
    ],
)
def test_a_goal_reached_in_the_last_planned_round_does_not_stop_the_rounds_after_it(
    team, owner, nodes, conductor, stop, first, more, sentence
):
    spec = spec_with(FEDERATED, federated={"rounds": 2, "stop": stop})
    job = services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    for loss in first:
        train(nodes, conductor, metrics={"test/loss": loss})
    job.refresh_from_db()
    assert job.state_reason == "All 2 rounds closed."
    services.resume_job(job=job, actor=owner, rounds=3)
    conductor.work()
    for loss in more:
        assert Job.objects.get().state == "running"
        train(nodes, conductor, metrics={"test/loss": loss})
    assert Job.objects.get().state_reason == sentence

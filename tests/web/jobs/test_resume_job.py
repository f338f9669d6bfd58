import pytest

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED
from trainer.protocol import TrainRound
from webapp.core.errors import Refusal
from webapp.jobs import services
from webapp.jobs.models import Attempt, Job, Round

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_federated_job_goes_on_from_its_last_closed_round(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    for node in nodes:
        node.deliver(node.asked(), value=1)
    conductor.work()
    second = [node.asked() for node in nodes]
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
        assert not nodes[0].deliver(second[0]).accepted, "an update of the attempt before"
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

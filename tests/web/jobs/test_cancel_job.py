import pytest

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED
from trainer.protocol import StopAttempt
from webapp.core.errors import Refusal
from webapp.core.models import Transition
from webapp.jobs import services
from webapp.jobs.models import Assignment, Attempt, Job
from webapp.jobs.permissions import can_control
from webapp.teams.models import Membership

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("spec", [FEDERATED, DISTRIBUTED], ids=["federated", "distributed"])
def test_a_running_job_stops_its_nodes_without_the_conductor(team, owner, nodes, conductor, spec):
    job = services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    for node in nodes:
        node.messages()
    services.cancel_job(job=job, actor=owner)
    assert (job.state, Job.objects.get().state_reason) == ("cancelled", "Cancelled by owner.")
    assert set(Assignment.objects.values_list("state", flat=True)) == {"releasing"}
    attempt = Attempt.objects.get()
    for node in nodes:
        assert node.messages() == [StopAttempt(attempt_id=attempt.pk)]
        node.report(attempt.pk, "released")
    assert set(Assignment.objects.values_list("state", flat=True)) == {"released"}
    last = Transition.objects.filter(subject=f"job:{job.pk}").last()
    assert (last.new, last.actor) == ("cancelled", "owner")


def test_a_queued_job_is_cancelled(team, owner):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    services.cancel_job(job=job, actor=owner)
    assert Job.objects.get().state == "cancelled"


def test_cancelling_again_changes_nothing(team, owner):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    for _ in range(2):
        services.cancel_job(job=job, actor=owner)
    assert Transition.objects.filter(subject=f"job:{job.pk}", new="cancelled").count() == 1


def test_an_ended_job_says_that_it_has_ended(team, owner):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    job.move_to(Job.State.FAILED, "Broken.")
    with pytest.raises(Refusal, match="has ended already: it is failed"):
        services.cancel_job(job=job, actor=owner)


def test_the_callers_copy_may_be_old(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    assert job.state == "queued"
    services.cancel_job(job=job, actor=owner)
    assert (Job.objects.get().state, Attempt.objects.get().state) == ("cancelled", "cancelled")


def test_a_stop_without_an_answer_is_sent_again_and_a_dead_nodes_slots_are_freed(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    services.cancel_job(job=job, actor=owner)
    for node in nodes:
        node.messages()
    services.sweep_jobs()
    assert [node.messages() for node in nodes] == [[], []]
    Assignment.objects.update(sent_at=None)
    services.sweep_jobs()
    assert [len(node.messages()) for node in nodes] == [1, 1]
    nodes[0].vanish()
    nodes[1].boot_id = "boot-2"
    nodes[1].beat()
    services.sweep_jobs()
    reasons = Assignment.objects.filter(state="released").values_list("state_reason", flat=True)
    assert list(reasons) == ["node-1 stopped answering: its last sign came 15 s ago.", "node-2 restarted."]


def test_who_may_control_a_job(team, owner, teammate, stranger, admin):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    assert [can_control(user, job) for user in (owner, teammate, stranger, admin)] == [True, False, False, True]
    Membership.objects.filter(user=teammate).update(role="maintainer")
    assert can_control(teammate, job)
    Membership.objects.filter(user=owner).delete()
    assert not can_control(owner, job), "who left the team controls nothing of it"
    for user in (owner, stranger):
        with pytest.raises(Refusal, match="ask them, or a maintainer of Cardiology") as refusal:
            services.cancel_job(job=job, actor=user)
        assert refusal.value.status == 403


def test_viewers_submit_nothing(team, teammate, stranger):
    Membership.objects.filter(user=teammate).update(role="viewer")
    for user in (teammate, stranger):
        with pytest.raises(Refusal):
            services.submit_job(team=team, owner=user, spec=FEDERATED)
    assert not Job.objects.exists()

"""What nodes say through their streams: their own part only, each once."""

import pytest

from tests.web.jobs.far_end import FEDERATED
from webapp.jobs import services
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Stray

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = ["started", "progress", "finished", "failed", "refused", "released", "model_kept"]


@pytest.fixture
def attempt(team, owner, nodes, conductor) -> Attempt:
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    return Attempt.objects.get()


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_node_changes_nothing_and_is_counted(attempt, make_node, kind):
    foreign = make_node("node-3")
    for attempt_id in (attempt.pk, 10**9):
        foreign.report(attempt_id, kind, "Ha.")
    assert set(Assignment.objects.values_list("state", "model_kept_at")) == {("active", None)}
    assert set(Participation.objects.values_list("state", flat=True)) == {"asked"}
    stray = Stray.objects.get()
    assert (stray.kind, stray.count) == ("report", 2)
    assert stray.last_reason == f"It reported '{kind}' for attempt {10**9}, in which it has no part."


@pytest.mark.parametrize("kind", ["started", "progress", "finished", "failed", "refused"])
def test_a_report_of_an_ended_attempt_is_counted(attempt, nodes, owner, kind):
    services.cancel_job(job=Job.objects.get(), actor=owner)
    nodes[0].report(attempt.pk, kind)
    assert Stray.objects.get().last_reason.endswith("which has ended.")
    assert Job.objects.get().state == "cancelled"


def test_started_is_noted_once_and_for_its_round(attempt, nodes):
    nodes[0].report(attempt.pk, "started", round_number=2)
    first = Participation.objects.get(assignment__index=0)
    assert first.started_at is None
    nodes[0].report(attempt.pk, "started", round_number=1)
    first.refresh_from_db()
    at = first.started_at
    assert at is not None
    nodes[0].report(attempt.pk, "started", round_number=1)
    first.refresh_from_db()
    assert first.started_at == at


@pytest.mark.parametrize(("kind", "state"), [("failed", "failed"), ("refused", "refused")])
def test_a_client_that_cannot_train_is_out_of_its_round_and_no_more(attempt, nodes, conductor, kind, state):
    for _ in range(2):
        nodes[0].report(attempt.pk, kind, "The file scans\0.csv is gone.", 1)
    settled = Participation.objects.get(assignment__index=0)
    assert (settled.state, settled.state_reason) == (state, "The file scans\ufffd.csv is gone.")
    assert Job.objects.get().state == "running"
    nodes[1].deliver(nodes[1].asked())
    conductor.work()
    assert Participation.objects.get(round__number=2, assignment__index=0).state == "asked"


def test_released_means_nothing_while_the_attempt_runs(attempt, nodes):
    nodes[0].report(attempt.pk, "released")
    assert Assignment.objects.get(index=0).state == "active"


def test_released_frees_the_slots_once(attempt, nodes, owner, conductor):
    services.cancel_job(job=Job.objects.get(), actor=owner)
    conductor.work()
    for _ in range(2):
        nodes[0].report(attempt.pk, "released")
    assert Assignment.objects.get(index=0).state_reason == "node-1 stopped."
    assert conductor.work() == ["schedule_jobs"]

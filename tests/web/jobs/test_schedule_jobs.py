import threading

import pytest
from django.db import connection

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED, spec_with
from trainer.sources import SourceSchema
from webapp.jobs import scheduling, services
from webapp.jobs.models import Assignment, Attempt, Job

pytestmark = pytest.mark.django_db(transaction=True)

SCANS = SourceSchema(name="scans", task="classification", shape=(4,), num_rows=50, num_classes=2)


def submit(team, owner, spec=FEDERATED) -> Job:
    return services.submit_job(team=team, owner=owner, spec=spec)


def test_a_job_starts_on_a_whole_gang(team, owner, nodes):
    job = submit(team, owner)
    services.schedule_jobs()
    job.refresh_from_db()
    assert (job.state, job.state_reason, job.waiting_for) == ("running", "Started on node-1, node-2.", None)
    attempt = Attempt.objects.get()
    assert (attempt.number, attempt.state) == (1, "running")
    held = Assignment.objects.values_list("node__name", "index", "slots", "state", "boot_id")
    assert list(held) == [("node-1", 0, 1, "active", "boot-1"), ("node-2", 1, 1, "active", "boot-1")]


def test_a_job_without_room_says_what_for_since_when_and_then(team, owner, make_node):
    make_node("node-1")
    job = submit(team, owner)
    services.schedule_jobs()
    job.refresh_from_db()
    assert job.state == "queued"
    assert job.waiting_for == {
        "what": "It needs 2 nodes with a free slot each, and only 1 is enrolled (node-1).",
        "since": job.state_changed_at.isoformat(),
        "until": None,
        "then": "It starts by itself when enough such nodes have joined.",
    }


def test_what_it_waits_for_is_written_only_when_it_changed(team, owner, make_node, django_assert_num_queries):
    make_node("node-1")
    submit(team, owner)
    services.schedule_jobs()
    # Is anyone queued; begin; the queue under its lock; nodes, teams; commit.
    with django_assert_num_queries(6):
        services.schedule_jobs()


def test_with_nobody_queued_it_costs_one_query(db, django_assert_num_queries):
    with django_assert_num_queries(1):
        services.schedule_jobs()


def test_only_nodes_that_admit_the_team_take_part(team, owner, stranger, nodes):
    nodes[1].node.teams.add(stranger.teams.get())
    job = submit(team, owner)
    services.schedule_jobs()
    job.refresh_from_db()
    assert job.state == "queued"
    nodes[1].node.teams.add(team)
    services.schedule_jobs()
    job.refresh_from_db()
    assert job.state == "running"


def test_a_nodes_own_source_is_only_where_it_is(team, owner, nodes, make_node):
    make_node("node-3", sources=(SCANS,))
    submit(team, owner, spec_with(DISTRIBUTED, data={"source": "scans"}, distributed={"nodes": 1}))
    services.schedule_jobs()
    assert Assignment.objects.get().node.name == "node-3"


def test_slots_that_are_not_released_are_taken(team, owner, nodes):
    spec = spec_with(DISTRIBUTED, distributed={"processes_per_node": 2})
    first, second = submit(team, owner, spec), submit(team, owner, spec)
    services.schedule_jobs()
    second.refresh_from_db()
    assert second.waiting_for["what"] == (
        "It needs 2 nodes with 2 free slots each; none has room. Busy: node-1, node-2."
    )
    services.cancel_job(job=first, actor=owner)
    services.schedule_jobs()
    second.refresh_from_db()
    assert second.state == "queued", "the nodes have not confirmed their stop yet"
    for node in nodes:
        node.report(Attempt.objects.get().pk, "released")
    services.schedule_jobs()
    second.refresh_from_db()
    assert second.state == "running"


def test_two_schedulers_at_once_start_a_job_once(team, owner, nodes):
    for _ in range(3):
        submit(team, owner)
    barrier, errors = threading.Barrier(4), []

    def schedule():
        try:
            barrier.wait(10)
            services.schedule_jobs()
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=schedule) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    # Two nodes of two slots: two jobs of two clients run, the third waits.
    assert sorted(Job.objects.values_list("state", flat=True)) == ["queued", "running", "running"]
    assert Attempt.objects.count() == 2
    for far in nodes:
        assert sum(far.node.assignments.values_list("slots", flat=True)) == 2


def test_a_scheduler_that_lost_the_race_changes_nothing(team, owner, nodes, monkeypatch):
    """The other scheduler starts the job between this one's plan and its move."""
    job = submit(team, owner)
    real = scheduling._start

    def late(stale, *rest):
        monkeypatch.setattr(scheduling, "_start", real)
        assert Job.objects.get(pk=stale.pk).move_to(Job.State.RUNNING, "The other one.")
        real(stale, *rest)

    monkeypatch.setattr(scheduling, "_start", late)
    services.schedule_jobs()
    job.refresh_from_db()
    assert job.state_reason == "The other one."
    assert not Attempt.objects.exists()


def test_a_cancelled_job_does_not_start(team, owner, nodes):
    job = submit(team, owner)
    services.cancel_job(job=job, actor=owner)
    services.schedule_jobs()
    job.refresh_from_db()
    assert (job.state, Attempt.objects.count()) == ("cancelled", 0)


def test_a_spec_of_another_time_fails_with_a_sentence_and_holds_up_nobody(team, owner, nodes):
    old, new = submit(team, owner), submit(team, owner)
    Job.objects.filter(pk=old.pk).update(spec_json={**old.spec_json, "gone": 1})
    services.schedule_jobs()
    old.refresh_from_db()
    new.refresh_from_db()
    assert (old.state, new.state) == ("failed", "running")
    assert "not valid in this version" in old.state_reason

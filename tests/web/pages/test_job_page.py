from __future__ import annotations

import re

import pytest
import yaml
from django.urls import reverse

from tests.conftest import browser_of
from tests.web.pages.conftest import submit
from trainer.spec import JobSpec
from webapp.core.states import Stateful
from webapp.jobs import services
from webapp.jobs.models import Attempt, Job, Round
from webapp.jobs.page_selectors import expected_curves
from webapp.jobs.waiting import waiting
from webapp.telemetry.models import Series


def page_of(job: Job, user) -> str:
    return browser_of(user).get(reverse("job-page", args=[job.pk])).content.decode()


def part_of(job: Job, user, part: str, query: str = "") -> str:
    return browser_of(user).get(reverse("job-part", args=[job.pk, part]) + query).content.decode()


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_what_it_waits_for_since_when_until_when_and_then(job, owner):
    job.waiting_for = waiting(
        what="It needs 2 nodes with a free slot, and 1 is online.", since=job.created_at, then="It starts by itself."
    )
    job.save(update_fields=["waiting_for"])
    said = text_of(part_of(job, owner, "state"))
    assert "It needs 2 nodes with a free slot, and 1 is online." in said
    assert "It starts by itself." in said


def test_why_it_failed_stands_at_the_top(ran, owner):
    ran.move_to(Job.State.FAILED, "Round 2 got 0 of 2 updates: node-a stopped answering.")
    assert "node-a stopped answering." in text_of(part_of(ran, owner, "state"))


def test_the_curves_and_logs_are_mounted_as_their_modules_expect(ran, owner):
    page = page_of(ran, owner)
    assert f'data-metrics-url="/api/v1/jobs/{ran.pk}/metrics"' in page
    assert f'data-ws-url="/ws/jobs/{ran.pk}/"' in page
    assert f'data-logs-url="/api/v1/jobs/{ran.pk}/logs"' in page
    assert 'data-ended="false"' in page


def test_a_round_says_who_returned_and_what_it_cost(ran, owner):
    said = text_of(part_of(ran, owner, "rounds"))
    # 2 s from opening to closing, of which the slowest client trained 1.5 s
    assert "1 Closed 1 / 2 1 refused 719 2 s 500 ms 1.0 KiB / 2.0 KiB 0.25 0.875" in said


def test_an_opened_round_names_each_client_and_why_not(ran, owner):
    round_ = Round.objects.get()
    said = text_of(part_of(ran, owner, "rounds", f"?open={round_.pk}"))
    assert "0 node-a Returned 719 1.5 s 1.0 KiB / 2.0 KiB 0.25" in said
    assert "1 node-b Refused The tensor 'net.0.weight' holds NaN." in said.replace("&#x27;", "'")


def test_an_opened_round_stays_when_newer_ones_come(ran, owner):
    attempt, first = ran.attempts.get(), Round.objects.get()
    for number in range(2, 30):
        Round.objects.create(
            attempt=attempt, number=number, state="closed", num_quorum=1, deadline_at=first.deadline_at
        )
    assert "node-a" not in text_of(part_of(ran, owner, "rounds"))
    assert "0 node-a Returned" in text_of(part_of(ran, owner, "rounds", f"?open={first.pk}"))


def test_a_rounds_loss_and_accuracy_are_called_the_clients_own(ran, owner):
    said = text_of(part_of(ran, owner, "rounds"))
    assert "Clients' loss Clients' accuracy" in said


def test_the_round_of_another_job_cannot_be_opened(ran, team, owner):
    from tests.web.pages.conftest import submit

    other = submit(team, owner)
    said = part_of(other, owner, "rounds", f"?open={Round.objects.get().pk}&rounds=x&open=x")
    assert "node-a" not in said


@pytest.mark.parametrize("num_rounds", [1, 40])
def test_the_number_of_queries_does_not_grow_with_rounds(num_rounds, ran, owner, django_assert_num_queries):
    attempt, first = ran.attempts.get(), Round.objects.get()
    for number in range(2, num_rounds + 1):
        Round.objects.create(
            attempt=attempt, number=number, state="closed", num_quorum=1, deadline_at=first.deadline_at
        )
    browser = browser_of(owner)
    with django_assert_num_queries(17):
        browser.get(reverse("job-page", args=[ran.pk]))


def test_history_tells_of_the_job_and_leaves_rounds_to_their_table(ran, owner):
    Round.objects.create(
        attempt=ran.attempts.get(), number=2, state="open", num_quorum=1, deadline_at=ran.created_at
    ).move_to(Round.State.FAILED, "Only for the table.")
    said = text_of(part_of(ran, owner, "history"))
    assert "Started on node-a, node-b." in said
    assert "Submitted. by owner" in said
    assert "Only for the table." not in said


def test_history_leaves_out_the_freeing_of_slots(ran, owner):
    assignment = ran.attempts.get().assignments.first()
    assignment.move_to("releasing")
    assignment.move_to("released", "node-a stopped.")
    assert "node-a stopped." not in text_of(part_of(ran, owner, "history"))


def test_room_is_kept_for_every_curve_that_will_come(job, team, owner):
    from tests.web.pages.conftest import submit

    assert expected_curves(job) == {
        "server/loss": 1,
        "test/loss": 3,
        "train/loss": 3,
        "server/accuracy": 1,
        "test/accuracy": 3,
        "train/accuracy": 3,
    }
    assert page_of(job, owner).count("data-room=") == 6
    ranks = {"nodes": 2, "processes_per_node": 2, "epochs": 1}
    distributed = submit(
        team, owner, mode="distributed", federated=None, data={"source": "diabetes"}, distributed=ranks
    )
    assert expected_curves(distributed) == {"test/loss": 1, "train/loss": 4, "test/r2": 1, "train/r2": 1}


def test_an_ended_job_has_room_for_what_it_left(job, owner):
    attempt = Attempt.objects.create(job=job, number=1, state="running")
    for name, source in (("train/r2", "a"), ("train/loss", "a"), ("train/loss", "b")):
        Series.objects.create(attempt=attempt, name=name, source=source)
    job.move_to(Job.State.CANCELLED)
    assert list(expected_curves(job).items()) == [("train/loss", 2), ("train/r2", 1)]


def test_only_who_may_submit_is_offered_a_clone(job, owner, teammate, team):
    assert "Clone" in text_of(part_of(job, teammate, "state"))
    team.memberships.filter(user=teammate).update(role="viewer")
    assert "Clone" not in text_of(part_of(job, teammate, "state"))


def test_history_names_who_did_it_once(job, owner):
    services.cancel_job(job=job, actor=owner)
    said = text_of(part_of(job, owner, "history"))
    assert "Cancelled by owner." in said
    assert "Cancelled by owner. by" not in said


def test_a_part_that_is_not_there(ran, owner):
    assert browser_of(owner).get(reverse("job-part", args=[ran.pk, "secrets"])).status_code == 404


def test_the_spec_comes_as_yaml_that_can_be_submitted_again(ran, owner):
    answer = browser_of(owner).get(reverse("job-spec", args=[ran.pk]))
    assert JobSpec.model_validate(yaml.safe_load(answer.content)) == ran.spec


def test_an_artifact_is_downloaded_as_it_is(ran, owner):
    answer = browser_of(owner).get(reverse("artifact-download", args=[ran.pk, ran.artifacts.get().pk]))
    assert b"".join(answer.streaming_content) == b"weights"
    answer.close()
    assert f'filename="job-{ran.pk}-model.safetensors"' in answer["Content-Disposition"]


def test_an_artifact_of_another_job(ran, team, owner):
    from tests.web.pages.conftest import submit

    other = submit(team, owner)
    answer = browser_of(owner).get(reverse("artifact-download", args=[other.pk, ran.artifacts.get().pk]))
    assert answer.status_code == 404


def test_cancel_asks_first_and_says_what_is_lost(job, owner, teammate):
    assert "The round that is under way is lost" in page_of(job, owner)
    assert "confirm-cancel" not in page_of(job, teammate)


def test_cancel(job, owner):
    answer = browser_of(owner).post(reverse("job-cancel", args=[job.pk]), follow=True)
    job.refresh_from_db()
    assert job.state == Job.State.CANCELLED
    assert "Cancelled. Its nodes stop within seconds." in answer.content.decode()


def test_cancel_of_what_has_ended_says_so(job, owner):
    job.move_to(Job.State.FAILED)
    answer = browser_of(owner).post(reverse("job-cancel", args=[job.pk]), follow=True)
    assert "has ended already" in answer.content.decode()


def test_resume(job, owner):
    job.move_to(Job.State.CANCELLED)
    browser_of(owner).post(reverse("job-resume", args=[job.pk]))
    job.refresh_from_db()
    assert job.state == Job.State.QUEUED


def test_a_finished_job_goes_on_with_more_rounds(ran, owner):
    ran.attempts.get().move_to("finished")
    ran.move_to(Job.State.FINISHED, "Done.", progress_done=20)
    page = page_of(ran, owner)
    assert 'data-dialog="more-rounds"' in page
    answer = browser_of(owner).post(reverse("job-resume", args=[ran.pk]), {"rounds": " 5 "}, follow=True)
    ran.refresh_from_db()
    assert (ran.state, ran.progress_total, ran.progress_planned) == (Job.State.QUEUED, 25, 25)
    assert "Queued again, with more rounds." in answer.content.decode()


@pytest.mark.parametrize("rounds", ["", "0", "-1", "many", "1.5", "9" * 30])
def test_what_is_no_number_of_rounds_is_said(rounds, ran, owner):
    ran.attempts.get().move_to("finished")
    ran.move_to(Job.State.FINISHED, "Done.", progress_done=20)
    answer = browser_of(owner).post(reverse("job-resume", args=[ran.pk]), {"rounds": rounds}, follow=True)
    ran.refresh_from_db()
    assert ran.state == Job.State.FINISHED
    assert 'class="toast-note error"' in answer.content.decode()


def test_only_a_finished_federated_job_of_ones_own_is_offered_more_rounds(job, team, owner, teammate):
    from tests.web.pages.conftest import submit

    assert "More rounds" not in page_of(job, owner)
    distributed = submit(team, owner, "digits-distributed")
    for ended in (job, distributed):
        ended.move_to(Job.State.RUNNING)
        ended.move_to(Job.State.FINISHED)
    assert "More rounds" in page_of(job, owner)
    assert "More rounds" not in page_of(job, teammate)
    assert "More rounds" not in page_of(distributed, owner)


def test_a_refusal_names_whom_to_ask(job, teammate):
    answer = browser_of(teammate).post(reverse("job-cancel", args=[job.pk]))
    assert answer.status_code == 403
    assert "belongs to owner" in answer.content.decode()


def test_a_name_with_a_script_in_it_stays_text(team, owner):
    from tests.web.pages.conftest import submit

    job = submit(team, owner, name="<script>alert(1)</script>")
    for url in ("/jobs/", reverse("job-page", args=[job.pk]), f"/jobs/new/?clone={job.pk}"):
        page = browser_of(owner).get(url).content.decode()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_every_state_has_a_look():
    from webapp.core.templatetags.ui import LOOKS

    states = {state for model in Stateful.__subclasses__() for state in model.MOVES}
    assert states <= set(LOOKS)


@pytest.mark.parametrize(
    ("federated", "traits"),
    [
        ({"clients": {"num": 2}}, []),
        ({"clients": {"simulate": 30}}, ["30 simulated clients"]),
        (
            {"clients": {"num": 4}, "secure_aggregation": {}, "privacy": {}},
            ["Secure aggregation", "Central differential privacy"],
        ),
        ({"clients": {"num": 2}, "local_privacy": {}}, ["Local differential privacy"]),
    ],
)
def test_what_is_special_about_a_job_stands_under_its_name(federated, traits, team, owner):
    data = {"source": "digits", "scaling": "none"}
    page = browser_of(owner).get(reverse("job-page", args=[submit(team, owner, federated=federated, data=data).pk]))
    facts = page.content.decode().partition('<ul class="job-facts">')[2].partition("</ul>")[0]
    assert re.findall(r'<li><span class="tag">([^<]+)</span>', facts) == traits

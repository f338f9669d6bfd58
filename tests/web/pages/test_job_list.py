import pytest
from django.urls import reverse

from tests.conftest import browser_of
from tests.web.pages.conftest import submit
from webapp.jobs.models import Job
from webapp.telemetry.models import Series

URL = "/jobs/"


def test_an_empty_list_offers_a_new_job_and_examples(owner):
    page = browser_of(owner).get(URL).content.decode()
    assert "No job yet" in page
    assert reverse("job-new") in page
    assert reverse("job-example", args=["non-iid-cnn"]) in page


def test_a_viewer_is_offered_nothing_that_would_be_refused(owner, team):
    team.memberships.filter(user=owner).update(role="viewer")
    page = browser_of(owner).get(URL).content.decode()
    assert "You watch as a viewer" in page
    assert reverse("job-new") not in page


def test_an_example_starts_a_job(owner, team):
    answer = browser_of(owner).post(reverse("job-example", args=["digits-distributed"]))
    job = Job.objects.get()
    assert answer["Location"] == reverse("job-page", args=[job.pk])
    assert (job.team, job.owner, job.mode, job.state) == (team, owner, "distributed", "queued")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["Digits, distributed", "Digits, federated"]),
        ("?mode=federated", ["Digits, federated"]),
        ("?state=cancelled", ["Digits, distributed"]),
        ("?mine=1", ["Digits, federated"]),
        ("?q=DISTRIB", ["Digits, distributed"]),
        ("?q=nothing+like+it", []),
        ("?state=no-such-state&mode=no-such-mode&page=no-such-page", ["Digits, distributed", "Digits, federated"]),
    ],
)
def test_filters_stand_in_the_url(query, names, job, team, owner, teammate):
    submit(team, teammate, "digits-distributed").move_to(Job.State.CANCELLED)
    page = browser_of(owner).get(URL + query)
    assert [found.name for found in page.context["page"]] == names


def test_the_newest_loss_of_the_whole_job_is_shown(ran, owner):
    attempt = ran.attempts.get()
    Series.objects.create(attempt=attempt, name="train/loss", source="aggregate", last_value=0.125)
    Series.objects.create(attempt=attempt, name="train/loss", source="node-a", last_value=9.0)
    page = browser_of(owner).get(URL)
    assert page.context["losses"] == {ran.pk: 0.125}
    assert "0.125" in page.content.decode()


def test_htmx_gets_the_rows_alone(job, owner):
    answer = browser_of(owner).get(URL, headers={"HX-Request": "true"})
    assert "<html" not in answer.content.decode()
    assert job.name in answer.content.decode()


@pytest.mark.parametrize("num_jobs", [1, 30])
def test_the_number_of_queries_does_not_grow(num_jobs, team, owner, django_assert_num_queries):
    for _ in range(num_jobs):
        submit(team, owner)
    browser = browser_of(owner)
    # session, user, count, page with owner and team, losses, teams to submit to, any team
    with django_assert_num_queries(7):
        browser.get(URL)


def test_pages_keep_the_filters(team, owner):
    for _ in range(51):
        submit(team, owner)
    page = browser_of(owner).get(URL + "?mode=federated")
    assert len(page.context["page"]) == 50
    assert "?mode=federated&amp;page=2" in page.content.decode()


def test_a_job_that_stopped_early_is_no_whole_one(ran, owner):
    Job.objects.update(state="finished", progress_done=5, progress_total=5, progress_planned=20)
    row = browser_of(owner).get("/jobs/").content.decode()
    assert 'title="Stopped early"' in row
    assert 'max="20" value="5"' in row
    page = browser_of(owner).get(reverse("job-page", args=[ran.pk])).content.decode()
    assert "/ 20, stopped early" in page

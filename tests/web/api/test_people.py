"""Who may call what: one row for each operation of the API. A test fails for an operation that has no row."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.web.api.conftest import SPEC
from webapp.api import api
from webapp.jobs.models import Job
from webapp.teams.models import ApiToken

PEOPLE = ("owner", "teammate", "stranger", "nobody", "admin")
LOOK = (200, 200, 404, 401, 200)
OWN = (200, 200, 200, 401, 200)

TABLE: dict[tuple[str, str], tuple[int, ...]] = {
    ("GET", "/jobs"): OWN,
    ("POST", "/jobs?team=cardiology"): (201, 201, 422, 401, 201),
    ("GET", "/jobs/{job_id}"): LOOK,
    ("POST", "/jobs/{job_id}/cancel"): (200, 403, 404, 401, 200),
    ("POST", "/jobs/{job_id}/resume"): (200, 403, 404, 401, 200),
    ("POST", "/jobs/{job_id}/clone"): (201, 201, 404, 401, 201),
    ("GET", "/jobs/{job_id}/spec"): LOOK,
    ("GET", "/jobs/{job_id}/rounds"): LOOK,
    ("GET", "/jobs/{job_id}/events"): LOOK,
    ("GET", "/jobs/{job_id}/artifacts"): LOOK,
    ("GET", "/jobs/{job_id}/artifacts/{artifact_id}/download"): LOOK,
    ("GET", "/jobs/{job_id}/series"): LOOK,
    ("GET", "/jobs/{job_id}/metrics"): LOOK,
    ("GET", "/jobs/{job_id}/logs"): LOOK,
    ("GET", "/nodes"): OWN,
    ("GET", "/nodes/{node_id}"): LOOK,
    ("GET", "/data-sources"): OWN,
    ("GET", "/me"): OWN,
    ("GET", "/teams/{slug}/members"): LOOK,
    ("GET", "/tokens"): OWN,
    ("POST", "/tokens"): (201, 201, 201, 401, 201),
    ("DELETE", "/tokens/{token_id}"): (204, 404, 404, 401, 404),
}
BODIES = {"/jobs?team=cardiology": SPEC, "/tokens": {"name": "laptop"}}


def test_every_operation_has_its_row():
    document = api.get_openapi_schema(path_prefix="")
    operations = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert operations == {(method, path.partition("?")[0]) for method, path in TABLE}


def fill(path: str, parts, owner) -> str:
    """The path with the owner's own things in it."""
    token = ApiToken.objects.filter(user=owner).first() or ApiToken.objects.create(user=owner, name="t", hash="1" * 64)
    return path.format(
        job_id=parts.job.pk,
        artifact_id=parts.artifact.pk,
        node_id=parts.node.pk,
        slug=parts.job.team.slug,
        token_id=token.pk,
    )


@pytest.mark.parametrize(("operation", "statuses"), TABLE.items(), ids=[" ".join(key) for key in TABLE])
@pytest.mark.parametrize("person", PEOPLE)
def test_who_may(operation, statuses, person, parts, call, request, owner):
    method, path = operation
    if path.endswith("/resume"):
        Job.objects.filter(pk=parts.job.pk).update(state="failed")
        parts.attempt.move_to("failed")
    user = None if person == "nobody" else request.getfixturevalue(person)
    caller = call(user)
    response = caller.send(method, fill(path, parts, owner), BODIES.get(path))
    assert response.status_code == statuses[PEOPLE.index(person)], response.content
    if response.status_code >= 400:
        problem = response.json()
        assert response["Content-Type"] == "application/problem+json; charset=utf-8"
        assert (problem["type"], problem["status"]) == ("about:blank", response.status_code)
        assert problem["detail"].endswith(".")


READS = [path for method, path in TABLE if method == "GET" and "{job_id}" in path]


@pytest.mark.parametrize("path", READS)
def test_a_strangers_404_is_that_of_a_job_that_never_was(path, parts, call, stranger, owner):
    caller = call(stranger)
    theirs = fill(path, parts, owner)
    nowhere = theirs.replace(f"/jobs/{parts.job.pk}", "/jobs/987654")
    answers = [caller.get(p) for p in (theirs, nowhere)]
    assert [a.status_code for a in answers] == [404, 404]
    sentences = [answer.json()["detail"] for answer in answers]
    assert sentences == [f"There is no job {number} that you may see." for number in (parts.job.pk, 987654)]


def test_the_list_shows_only_ones_teams(parts, call, owner, teammate, stranger, admin):
    seen = {
        p.username: [j["id"] for j in call(p).get("/jobs").json()["items"]] for p in (owner, teammate, stranger, admin)
    }
    job = [parts.job.pk]
    assert seen == {"owner": job, "teammate": job, "stranger": [], "admin": job}


class TestSession:
    """The browser's own way in: its session, and a CSRF token for whatever changes something."""

    @pytest.fixture
    def browser(self, owner):
        client = Client(enforce_csrf_checks=True)
        client.force_login(owner)
        return client

    def test_it_reads(self, browser, parts):
        assert browser.get(f"/api/v1/jobs/{parts.job.pk}").status_code == 200

    def test_it_writes_nothing_without_a_csrf_token(self, browser, parts):
        response = browser.post(f"/api/v1/jobs/{parts.job.pk}/cancel")
        assert response.status_code == 403
        assert "CSRF" in response.json()["detail"]
        assert Job.objects.get().state == "running"

    def test_it_writes_with_one(self, browser, parts):
        token = "a" * 32
        browser.cookies["csrftoken"] = token
        response = browser.post(f"/api/v1/jobs/{parts.job.pk}/cancel", headers={"X-CSRFToken": token})
        assert response.status_code == 200

    def test_a_wrong_token_is_not_made_good_by_it(self, browser):
        response = browser.get("/api/v1/me", headers={"Authorization": "Bearer tma_wrong"})
        assert response.status_code == 401

    @pytest.mark.django_db
    def test_nobody_who_posts_is_told_to_sign_in(self):
        response = Client(enforce_csrf_checks=True).post("/api/v1/jobs")
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == "Bearer"

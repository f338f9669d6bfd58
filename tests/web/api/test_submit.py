"""POST /jobs and /clone."""

from __future__ import annotations

import pytest

from tests.web.api.conftest import SPEC
from webapp.jobs import services
from webapp.jobs.models import Job
from webapp.teams.services import add_member, create_team


def test_a_bare_spec_becomes_a_job(call, owner, team):
    response = call(owner).post("/jobs", SPEC)
    assert response.status_code == 201
    body = response.json()
    job = Job.objects.get()
    assert body["id"] == job.pk
    assert response["Location"] == f"/api/v1/jobs/{job.pk}"
    assert (body["state"], body["owner"], body["team"]) == ("queued", "owner", "cardiology")
    assert body["spec"]["federated"]["rounds"] == 3
    assert "distributed" not in body["spec"]
    assert body["progress"] == {"done": 0, "total": 3, "planned": 3, "unit": "rounds"}


def test_a_wrapped_spec_is_the_same(call, owner, team):
    caller = call(owner)
    bare, wrapped = caller.post("/jobs", SPEC).json(), caller.post("/jobs", {"spec": SPEC}).json()
    assert bare["spec"] == wrapped["spec"]


def test_who_is_in_two_teams_says_which(call, owner, team):
    add_member(team=create_team(name="Biology"), user=owner, role="member")
    caller = call(owner)
    refused = caller.post("/jobs", SPEC)
    assert refused.status_code == 422
    assert refused.json()["detail"].endswith("Your teams: biology, cardiology.")
    assert caller.post("/jobs?team=biology", SPEC).json()["team"] == "biology"


def test_a_viewer_watches(call, owner, stranger, team):
    add_member(team=team, user=stranger, role="viewer")
    refused = call(stranger).post("/jobs?team=cardiology", SPEC)
    assert refused.status_code == 403
    assert "as a viewer" in refused.json()["detail"]


class TestIdempotency:
    def test_the_same_key_and_body_is_the_same_job(self, call, owner, team):
        caller = call(owner)
        first, second = (caller.post("/jobs", SPEC, **{"Idempotency-Key": "k1"}) for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.json()["id"] == second.json()["id"]
        assert Job.objects.count() == 1

    def test_the_same_key_with_another_body_is_refused(self, call, owner, team):
        caller = call(owner)
        caller.post("/jobs", SPEC, **{"Idempotency-Key": "k1"})
        refused = caller.post("/jobs", {**SPEC, "seed": 1}, **{"Idempotency-Key": "k1"})
        assert refused.status_code == 409
        assert Job.objects.count() == 1

    def test_of_two_requests_at_once_one_makes_the_job(self, call, owner, team, monkeypatch):
        """The other request commits between our look and our write: the database lets only one through."""
        caller = call(owner)
        first = caller.post("/jobs", SPEC, **{"Idempotency-Key": "k1"}).json()
        look, looks = services._submitted, []

        def look_too_early(*args):
            looks.append(args)
            return None if len(looks) == 1 else look(*args)

        monkeypatch.setattr(services, "_submitted", look_too_early)
        second = caller.post("/jobs", SPEC, **{"Idempotency-Key": "k1"})
        assert (second.status_code, second.json()["id"], len(looks)) == (201, first["id"], 2)
        assert Job.objects.count() == 1

    def test_a_key_is_ones_own(self, call, owner, teammate, team):
        for person in (owner, teammate):
            assert call(person).post("/jobs", SPEC, **{"Idempotency-Key": "k1"}).status_code == 201
        assert Job.objects.count() == 2

    def test_without_a_key_each_is_a_job(self, call, owner, team):
        caller = call(owner)
        for _ in range(2):
            caller.post("/jobs", SPEC)
        assert Job.objects.count() == 2

    def test_a_key_has_100_characters_at_most(self, call, owner, team):
        refused = call(owner).post("/jobs", SPEC, **{"Idempotency-Key": "k" * 101})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["loc"] == ["Idempotency-Key"]


class TestClone:
    def test_it_trains_the_same(self, call, parts, teammate):
        body = call(teammate).post(f"/jobs/{parts.job.pk}/clone").json()
        assert (body["cloned_from"], body["owner"]) == (parts.job.pk, "teammate")
        assert Job.objects.get(pk=body["id"]).spec == parts.job.spec

    @pytest.mark.parametrize("wrap", [lambda changes: changes, lambda changes: {"spec": changes}])
    def test_changes_are_laid_over_it(self, call, parts, owner, wrap):
        changes = {"seed": 7, "model": {"name": "mlp", "options": {"hidden": [4]}}}
        body = call(owner).post(f"/jobs/{parts.job.pk}/clone", wrap(changes)).json()
        assert (body["spec"]["seed"], body["spec"]["model"]["options"]["hidden"]) == (7, [4])
        assert body["spec"]["federated"] == parts.job.spec.federated.model_dump(mode="json", exclude_none=True)

    def test_a_change_is_checked(self, call, parts, owner):
        refused = call(owner).post(f"/jobs/{parts.job.pk}/clone", {"seed": -1})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["loc"] == ["seed"]


class TestResume:
    @pytest.fixture
    def finished(self, parts):
        parts.attempt.move_to("finished")
        parts.job.move_to("finished", "Done.", progress_done=3)
        return parts.job

    def test_a_finished_job_goes_on_with_more_rounds(self, call, finished, owner):
        answer = call(owner).post(f"/jobs/{finished.pk}/resume", {"rounds": 4})
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.json()["progress"]) == (
            "queued",
            {"done": 3, "total": 7, "planned": 7, "unit": "rounds"},
        )

    def test_without_rounds_it_says_what_to_do(self, call, finished, owner):
        answer = call(owner).post(f"/jobs/{finished.pk}/resume")
        assert answer.status_code == 409
        assert "rounds more" in answer.json()["detail"]

    @pytest.mark.parametrize("body", [{"rounds": 0}, {"rounds": "many"}, {"epochs": 3}])
    def test_a_wrong_body_names_its_field(self, call, finished, owner, body):
        answer = call(owner).post(f"/jobs/{finished.pk}/resume", body)
        assert answer.status_code == 422
        assert next(iter(body)) in answer.json()["errors"][0]["loc"]

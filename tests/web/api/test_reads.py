"""What the API tells about a job."""

from __future__ import annotations

import hashlib
import io

import pytest
import yaml
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.web.api.conftest import MODEL, SPEC
from webapp.blobs.services import delete, path_of
from webapp.core.downloads import CHUNK_BYTES, send_file
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Round


@pytest.fixture
def caller(call, owner):
    return call(owner)


def test_a_job(caller, parts):
    body = caller.get(f"/jobs/{parts.job.pk}").json()
    assert body["progress"] == {"done": 1, "total": 3, "planned": 3, "unit": "rounds"}
    assert body["spec"]["data"]["source"] == "digits"
    (attempt,) = body["attempts"]
    assert (attempt["number"], attempt["state"], attempt["ended_at"]) == (1, "running", None)
    assert attempt["assignments"] == [{"node": "node-1", "index": 0, "slots": 1, "state": "active"}]


def test_rounds_with_who_took_part(caller, parts):
    page = caller.get(f"/jobs/{parts.job.pk}/rounds").json()
    assert (page["total"], page["limit"], page["offset"]) == (1, 1000, 0)
    (round_,) = page["items"]
    assert (round_["number"], round_["attempt"], round_["state"], round_["phase"]) == (1, 1, "closed", "")
    assert round_["metrics"] == {"train/loss": 0.5}
    (client,) = round_["participations"]
    assert (client["client"], client["node"], client["state"]) == (0, "node-1", "returned")
    assert (client["num_examples"], client["seconds_training"]) == (718, 0.25)


def test_rounds_say_what_their_aggregation_says(caller, parts):
    parts.round.facts = {"weights": [1.0], "norms": [0.5], "epsilon": 1.25}
    parts.round.save(update_fields=["facts"])
    counts = {"bytes_down": 2600, "num_steps": 23, "loss_before": 2.5, "label_counts": {"0": 71, "1": 72}}
    counts["num_saturated"] = 7
    parts.round.participations.update(**counts)
    (round_,) = caller.get(f"/jobs/{parts.job.pk}/rounds").json()["items"]
    assert round_["facts"]["weights"] == [1.0]
    assert (round_["facts"]["epsilon"], round_["facts"]["left_out"]) == (1.25, None)
    (client,) = round_["participations"]
    assert {key: client[key] for key in counts} == counts


def test_events(caller, parts):
    (event,) = caller.get(f"/jobs/{parts.job.pk}/events").json()["items"]
    assert (event["subject"], event["old"], event["new"], event["reason"]) == (
        f"job:{parts.job.pk}",
        "queued",
        "running",
        "Go.",
    )


def test_artifacts_and_their_bytes(caller, parts):
    (artifact,) = caller.get(f"/jobs/{parts.job.pk}/artifacts").json()
    assert artifact["digest"] == hashlib.sha256(MODEL).hexdigest()
    assert artifact["size_bytes"] == len(MODEL)
    response = caller.get(artifact["url"].removeprefix("/api/v1"))
    assert response.body == MODEL
    assert response["Content-Disposition"] == 'attachment; filename="model.safetensors"'
    assert response["Content-Length"] == str(len(MODEL))


def test_an_artifact_whose_bytes_are_gone(caller, parts):
    delete(parts.artifact.digest)
    response = caller.get(f"/jobs/{parts.job.pk}/artifacts/{parts.artifact.pk}/download")
    assert response.status_code == 410
    assert "'model.safetensors'" in response.json()["detail"]


async def test_behind_asgi_a_file_comes_in_pieces(tmp_path):
    """Never as one: Django would read a plain file into memory there."""
    path = tmp_path / "large"
    path.write_bytes(b"x" * (CHUNK_BYTES + 1))
    request = ASGIRequest({"type": "http", "method": "GET", "path": "/", "headers": []}, io.BytesIO())
    response = send_file(request, path, name="Ünïcode.safetensors")
    pieces = [len(piece) async for piece in response]
    assert pieces == [CHUNK_BYTES, 1]
    assert response["Content-Length"] == str(CHUNK_BYTES + 1)
    assert response["Content-Type"] == "application/octet-stream"
    assert "filename*=utf-8''%C3%9Cn%C3%AFcode.safetensors" in response["Content-Disposition"]
    response.close()


def test_the_spec_comes_back_as_it_can_be_submitted(caller, parts):
    as_json = caller.get(f"/jobs/{parts.job.pk}/spec")
    as_yaml = caller.get(f"/jobs/{parts.job.pk}/spec?format=yaml")
    assert as_yaml["Content-Type"].startswith("application/yaml")
    assert yaml.safe_load(as_yaml.content) == as_json.json()
    assert "distributed" not in as_json.json()
    again = caller.post("/jobs", as_json.json())
    assert again.status_code == 201
    assert Job.objects.get(pk=again.json()["id"]).spec == parts.job.spec
    assert caller.get(f"/jobs/{parts.job.pk}/spec?format=toml").status_code == 422


class TestList:
    @pytest.fixture(autouse=True)
    def jobs(self, caller, parts):
        for number in range(3):
            caller.post("/jobs", {**SPEC, "name": f"Clone {number}_%"})

    def names(self, caller, query):
        page = caller.get(f"/jobs?{query}").json()
        return [job["name"] for job in page["items"]], page["total"]

    def test_pages_from_the_newest(self, caller):
        assert self.names(caller, "limit=2") == (["Clone 2_%", "Clone 1_%"], 4)
        assert self.names(caller, "limit=2&offset=3") == (["Digits"], 4)
        assert self.names(caller, "offset=99") == ([], 4)

    def test_conditions_add_up(self, caller):
        assert self.names(caller, "state=running") == (["Digits"], 1)
        assert self.names(caller, "state=running&state=queued")[1] == 4
        assert self.names(caller, "mode=distributed") == ([], 0)
        assert self.names(caller, "q=clone")[1] == 3
        assert self.names(caller, "q=_%25")[1] == 3
        assert self.names(caller, "q=clone&state=running") == ([], 0)
        assert self.names(caller, "team=cardiology&owner=owner")[1] == 4
        assert self.names(caller, "team=oncology") == ([], 0)
        assert self.names(caller, "owner=teammate") == ([], 0)

    def test_a_number_finds_its_job(self, caller, parts):
        assert self.names(caller, f"q={parts.job.pk}")[0][-1] == "Digits"

    def test_queries_do_not_grow_with_the_list(self, caller):
        # The token with its user, the page, the count.
        with CaptureQueriesContext(connection) as queries:
            caller.get("/jobs")
        assert len(queries) == 3


@pytest.mark.parametrize(("path", "count"), [("", 5), ("/rounds", 7), ("/events", 4), ("/artifacts", 3), ("/spec", 2)])
def test_queries_do_not_grow_with_the_job(caller, parts, path, count):
    first = Participation.objects.get()
    for number in (2, 3):
        attempt = Attempt.objects.create(job=parts.job, number=number, state="failed")
        round_ = Round.objects.create(attempt=attempt, number=number, num_quorum=1, deadline_at=parts.round.deadline_at)
        held = Assignment.objects.create(attempt=attempt, node=parts.node, index=0, slots=1, state="released")
        Participation.objects.create(round=round_, assignment=held, state=first.state)
    caller.get("/me")  # marks the token as used
    with CaptureQueriesContext(connection) as queries:
        assert caller.get(f"/jobs/{parts.job.pk}{path}").status_code == 200
    assert len(queries) == count, [q["sql"] for q in queries]


def test_blob_paths_are_never_taken_from_the_caller(parts):
    with pytest.raises(ValueError, match="no SHA-256"):
        path_of("../../etc/passwd")

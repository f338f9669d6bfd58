"""Whatever is sent, the answer is a problem document whose sentence names what is wrong, and nothing is stored."""

from __future__ import annotations

import io
import json
from urllib.parse import quote

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.urls import resolve

from tests.web.api.conftest import SPEC
from webapp.jobs.models import Job


@pytest.fixture
def caller(call, owner):
    return call(owner)


def wrong(**fields):
    return {**SPEC, **fields}


WRONG_FIELDS = {
    "unknown field": (wrong(learning_rate=1), ["learning_rate"]),
    "unknown field below": (wrong(training={"batchsize": 3}), ["training", "batchsize"]),
    "option of another model": (
        wrong(model={"name": "linear", "options": {"hidden": [3]}}),
        ["model", "options", "hidden"],
    ),
    "unknown model": (wrong(model={"name": "resnet"}), ["model"]),
    "out of range": (wrong(seed=-1), ["seed"]),
    "too large": (wrong(seed=2**80), ["seed"]),
    "wrong type": (wrong(federated={"rounds": "many"}), ["federated", "rounds"]),
    "not a number": (json.dumps(wrong(training={"optimizer": {"name": "sgd", "lr": float("nan")}})), None),
    "both modes": (wrong(distributed={}), None),
    "unknown source": (wrong(data={"source": "../../etc/passwd"}), ["data", "source"]),
    "a source that nobody has": (wrong(data={"source": "nobody-has-it"}), ["data", "source"]),
    "a model that does not fit": (wrong(model={"name": "cnn"}, data={"source": "diabetes"}), ["model", "name"]),
    "name of 10,000 characters": (wrong(name="n" * 10_000), ["name"]),
    "empty name": (wrong(name="  "), ["name"]),
    "NUL in a name": (wrong(name="a\0b"), ["name"]),
    "half a surrogate in a name": ('{"name": "\\ud800", ' + json.dumps(SPEC)[1:].partition(", ")[2], ["name"]),
    "no fields": ({}, ["name"]),
    "spec is no object": ({"spec": 3}, ["spec"]),
}


@pytest.mark.parametrize(("body", "loc"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_spec_is_named_field_by_field(caller, body, loc):
    response = caller.post("/jobs", body)
    problem = response.json()
    assert response.status_code == 422, problem
    assert problem["detail"].endswith(".")
    for error in problem["errors"]:
        assert error["message"].endswith((".", "?")), error
        assert len(error["message"]) < 400
    places = [e["loc"] for e in problem["errors"]]
    if loc is not None:
        assert any(place[: len(loc)] == loc for place in places), places
    assert not Job.objects.exists()


def test_every_wrong_field_is_named_at_once(caller):
    problem = caller.post("/jobs", wrong(seed=-1, training={"batch_size": 0})).json()
    assert [e["loc"] for e in problem["errors"]] == [["seed"], ["training", "batch_size"]]


@pytest.mark.parametrize("body", [b"{", b'{"name": ', b"\xff\xfe", b"[" * 100_000, b"name: Digits"])
def test_half_json_is_400(caller, body):
    response = caller.post("/jobs", body)
    assert response.status_code == 400
    assert response.json()["detail"].startswith("The body is not JSON")


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null", b""])
def test_json_that_is_no_object_is_422(caller, body):
    assert caller.post("/jobs", body).status_code == 422


def test_5_megabytes_are_413(caller):
    response = caller.post("/jobs", wrong(name="n" * 5_000_000))
    assert response.status_code == 413
    assert response.json()["detail"] == "The body of a request may have at most 1,000,000 bytes."


def test_5_megabytes_that_do_not_say_so_are_413(caller):
    """A body in chunks has no Content-Length, so Django's own limit does not see it."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/jobs",
        "query_string": b"",
        "headers": [(b"authorization", caller.authorization.encode())],
    }
    request = ASGIRequest(scope, io.BytesIO(json.dumps(wrong(name="n" * 5_000_000)).encode()))
    response = resolve("/api/v1/jobs").func(request)
    assert response.status_code == 413


def test_an_unknown_filter_is_named(caller):
    response = caller.get("/jobs?sate=running")
    assert response.status_code == 422
    assert [e["loc"] for e in response.json()["errors"]] == [["sate"]]


WRONG_FILTERS = {
    "limit=0": "'limit' is at least 1.",
    "limit=501": "'limit' is at most 500.",
    "limit=x": "'limit' is a whole number.",
    "offset=-1": "'offset' is at least 0.",
    "state=asleep": "'state' is queued, running, finished, failed or cancelled.",
    "mode=magic": "'mode' is federated or distributed.",
    "q=" + "x" * 201: "'q' has at most 200 characters.",
}


@pytest.mark.parametrize(("query", "sentence"), WRONG_FILTERS.items())
def test_a_filter_out_of_range_is_named_in_plain_words(caller, query, sentence):
    response = caller.get(f"/jobs?{query}")
    problem = response.json()
    assert (response.status_code, problem["detail"]) == (422, sentence)
    assert [e["message"] for e in problem["errors"]] == [sentence]
    assert problem["errors"][0]["loc"][0] == query.partition("=")[0]


def test_of_several_wrong_filters_each_has_its_sentence(caller):
    problem = caller.get("/jobs?limit=0&mode=magic").json()
    assert problem["detail"] == "Correct these and send the request again: mode, limit."
    assert len(problem["errors"]) == 2


@pytest.mark.parametrize("text", ["' OR 1=1 --", "%", "_", '"; DROP TABLE jobs_job; --', "\\", "9" * 200, "名"])
def test_sql_is_only_text(caller, parts, text):
    page = caller.get(f"/jobs?q={quote(text)}").json()
    assert (page["items"], page["total"]) == ([], 0)


def test_nul_is_refused(caller):
    assert caller.get("/jobs?q=a%00b").status_code == 400


def test_a_thousand_parameters_are_refused(caller):
    response = caller.get("/jobs?" + "&".join(f"p{n}=1" for n in range(1001)))
    assert response.status_code == 400
    assert response.json()["detail"].startswith("The request has more parameters")


@pytest.mark.parametrize("job", ["0", "99999999999999999999999", "abc", "-1", "1;2", "%00"])
def test_a_job_that_cannot_be_is_404(caller, job):
    response = caller.get(f"/jobs/{job}")
    assert response.status_code == 404
    assert response["Content-Type"] == "application/problem+json; charset=utf-8"


def test_an_artifact_of_another_job_is_404(caller, parts):
    other = caller.post(f"/jobs/{parts.job.pk}/clone").json()["id"]
    assert caller.get(f"/jobs/{other}/artifacts/{parts.artifact.pk}/download").status_code == 404


def test_a_wrong_method_is_405_and_says_which_are_right(caller, parts):
    response = caller.send("DELETE", f"/jobs/{parts.job.pk}")
    assert (response.status_code, response["Allow"]) == (405, "GET")
    assert response.json()["detail"] == "DELETE is not possible at this address: use GET."


@pytest.mark.parametrize("path", ["", "/", "/nowhere", "/jobs/"])
def test_a_wrong_address_is_404(caller, path):
    response = caller.get(path or "/")
    assert response.status_code == 404
    assert response["Content-Type"] == "application/problem+json; charset=utf-8"


def test_an_error_of_ours_shows_no_traceback(caller, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("webapp.jobs.api.search_jobs", broken)
    response = caller.get("/jobs")
    assert response.status_code == 500
    assert "secret" not in response.content.decode()
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer x y", "Basic b3duZXI6", "tma_x", "Bearer \xff"])
def test_a_wrong_authorization_is_401(caller, header):
    assert caller.send("GET", "/me", Authorization=header).status_code == 401

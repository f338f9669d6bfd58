"""Blobs out: to the nodes that need them."""

from __future__ import annotations

import pytest

from tests.web.blobs.conftest import digest_of
from trainer.spec import JobSpec
from webapp.blobs import services
from webapp.fleet.models import Node
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Round

DATA = bytes(range(256)) * 12_000
SPEC = JobSpec.model_validate(
    {"name": "x", "mode": "federated", "model": {"name": "mlp"}, "data": {"source": "digits"}}
)


@pytest.fixture
def attempt(owner, team) -> Attempt:
    job = Job.objects.create(
        team=team, owner=owner, name="x", mode="federated", spec_json=SPEC.model_dump(mode="json"), state="running"
    )
    return Attempt.objects.create(job=job, number=1, state="running")


def assign(attempt: Attempt, node: Node, state: str = "active") -> Assignment:
    return Assignment.objects.create(attempt=attempt, node=node, index=0, slots=1, state=state)


@pytest.fixture
def url(blob_dir) -> str:
    return f"blobs/{services.save_bytes(DATA).digest}"


@pytest.fixture
def reader(join, attempt, url):
    """The client of a node that trains with these weights."""
    node, client = join("node-1")
    assign(attempt, node)
    Attempt.objects.filter(pk=attempt.pk).update(weights_digest=digest_of(DATA))
    return client


def test_all_of_it(reader, url):
    answer = reader.get(url)
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["etag"] == f'"{digest_of(DATA)}"'


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=1000000-", 1_000_000, len(DATA) - 1),
        ("bytes=10-99999999", 10, len(DATA) - 1),
        ("bytes=-5", len(DATA) - 5, len(DATA) - 1),
    ],
)
def test_a_range(reader, url, asked, first, last):
    answer = reader.get(url, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert answer.content == DATA[first : last + 1]


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=0-1", "bytes=-", "nonsense"])
def test_a_range_that_nobody_serves_is_all_of_it(reader, url, asked):
    assert reader.get(url, headers={"Range": asked}).status_code == 200


def test_a_range_beyond_the_end(reader, url):
    answer = reader.get(url, headers={"Range": f"bytes={len(DATA)}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


def test_what_a_node_does_not_need_is_not_there(join, reader, url):
    _, other = join("node-2")
    hidden, absent = other.get(url), other.get(f"blobs/{'0' * 64}")
    assert hidden.status_code == absent.status_code == 404
    assert hidden.json() == absent.json()


def test_an_uploader_may_not_read_back(join, url):
    _, client = join("node-1")
    assert client.put(url, content=DATA).status_code == 200
    assert client.get(url).status_code == 404


def test_the_weights_of_an_open_round(join, attempt, url):
    node, client = join("node-1")
    row = assign(attempt, node)
    Round.objects.create(
        attempt=attempt,
        number=1,
        state="open",
        weights_digest=digest_of(DATA),
        num_quorum=1,
        deadline_at="2100-01-01T00:00Z",
    )
    assert client.get(url).status_code == 200
    Assignment.objects.filter(pk=row.pk).update(state="released")
    assert client.get(url).status_code == 404


def test_an_artifact_after_the_end(join, attempt, url):
    node, client = join("node-1")
    assign(attempt, node, "released")
    Artifact.objects.create(
        job=attempt.job, attempt=attempt, name="model.safetensors", digest=digest_of(DATA), size_bytes=len(DATA)
    )
    assert client.get(url).status_code == 200


def test_a_blob_that_is_gone(reader, url):
    services.delete(digest_of(DATA))
    assert reader.get(url).status_code == 404

"""A job with all its parts, and each person's way to the API."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from trainer.protocol import Facts
from trainer.spec import JobSpec
from webapp.blobs.services import save_bytes
from webapp.core.models import Transition
from webapp.fleet.models import Node
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Participation, Round
from webapp.teams.models import Team
from webapp.teams.services import create_api_token

SPEC: dict[str, Any] = {
    "name": "Digits",
    "mode": "federated",
    "model": {"name": "linear"},
    "data": {"source": "digits"},
    "federated": {"rounds": 3},
}
MODEL = b"safetensors, as far as this test goes"


class Caller:
    """Calls the API as one person does, with a token of his."""

    def __init__(self, user: User | None) -> None:
        self._client = Client()
        self.authorization = ""
        if user is not None:
            _, token = create_api_token(user=user, name="test")
            self.authorization = f"Bearer {token}"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> HttpResponse:
        data = body if isinstance(body, (bytes, str)) else "" if body is None else json.dumps(body)
        known = {"Authorization": self.authorization} if self.authorization else {}
        response = self._client.generic(
            method, f"/api/v1{path}", data, "application/json", headers={**known, **headers}
        )
        if response.streaming:
            response.body = b"".join(response)
            response.close()
        return response

    def get(self, path: str) -> HttpResponse:
        return self.send("GET", path)

    def post(self, path: str, body: Any = None, **headers: str) -> HttpResponse:
        return self.send("POST", path, body, **headers)


@pytest.fixture
def call(db):
    """`call(user)` is that person's Caller; `call(None)` is nobody's."""
    return Caller


@pytest.fixture(autouse=True)
def blob_dir(settings, tmp_path: Path) -> Path:
    settings.BLOB_DIR = tmp_path / "blobs"
    return settings.BLOB_DIR


@pytest.fixture
def parts(team: Team, owner: User) -> SimpleNamespace:
    """A running federated job of `owner` with a node, an attempt, a closed round, a participation and an artifact."""
    now = timezone.now()
    facts = Facts(
        hostname="a",
        platform="Linux",
        agent_version="0.1.0",
        torch_version="2.13.0",
        python_version="3.11.2",
        num_cpus=2,
        memory_bytes=2**33,
    )
    node = Node.objects.create(name="node-1", state="online", secret_hash="0" * 64, facts_json=facts.model_dump())
    node.teams.add(team)
    spec = JobSpec.model_validate(SPEC)
    job = Job.objects.create(
        team=team,
        owner=owner,
        name=spec.name,
        mode=spec.mode,
        spec_json=spec.model_dump(mode="json"),
        state="running",
        progress_done=1,
        progress_total=3,
        progress_planned=3,
    )
    Transition.objects.create(thread=job.thread, subject=f"job:{job.pk}", old="queued", new="running", reason="Go.")
    attempt = Attempt.objects.create(job=job, number=1, state="running")
    assignment = Assignment.objects.create(attempt=attempt, node=node, index=0, slots=1, state="active")
    round_ = Round.objects.create(
        attempt=attempt,
        number=1,
        state="closed",
        weights_digest="a" * 64,
        num_quorum=1,
        deadline_at=now + timedelta(minutes=10),
        closed_at=now,
        metrics={"train/loss": 0.5},
    )
    Participation.objects.create(
        round=round_, assignment=assignment, state="returned", returned_at=now, num_examples=718, seconds_training=0.25
    )
    blob = save_bytes(MODEL)
    artifact = Artifact.objects.create(
        job=job, attempt=attempt, name="model.safetensors", digest=blob.digest, size_bytes=blob.size_bytes
    )
    return SimpleNamespace(job=job, node=node, attempt=attempt, round=round_, artifact=artifact)

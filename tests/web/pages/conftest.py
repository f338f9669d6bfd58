from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from trainer.protocol import EnrolRequest, Facts
from trainer.spec import JobSpec
from webapp.blobs.services import save_bytes
from webapp.fleet import services as fleet
from webapp.fleet.models import Node
from webapp.jobs import services
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Participation, Round
from webapp.jobs.presets import PRESETS
from webapp.teams.models import Team


@pytest.fixture(autouse=True)
def blob_dir(settings, tmp_path):
    settings.BLOB_DIR = tmp_path / "blobs"


def submit(team: Team, owner: User, preset: str = "digits-federated", **changes: object) -> Job:
    spec = JobSpec.model_validate({**PRESETS[preset].spec, **changes})
    return services.submit_job(team=team, owner=owner, spec=spec)


@pytest.fixture
def job(team: Team, owner: User) -> Job:
    return submit(team, owner)


def enrol(name: str, admin: User, *, preapproved: bool = False) -> Node:
    facts = Facts(
        hostname=f"{name}.example.org",
        platform="Linux",
        agent_version="0.1.0",
        torch_version="2.13.0",
        python_version="3.11.9",
        num_cpus=8,
        memory_bytes=32 * 2**30,
        slots=4,
    )
    _, token = fleet.create_enrolment_token(actor=admin, preapproved=preapproved)
    answer = fleet.enrol_node(request=EnrolRequest(token=token, name=name, facts=facts))
    return Node.objects.get(pk=answer.node_id)


@pytest.fixture
def node(admin: User) -> Node:
    """A node that waits for approval."""
    return enrol("gpu-1", admin)


@pytest.fixture
def ran(job: Job, admin: User) -> Job:
    """A running job with one closed round: client 0 returned, client 1 was refused. It left an artifact."""
    now = timezone.now()
    job.move_to(Job.State.RUNNING, "Started on node-a, node-b.", progress_done=1)
    attempt = Attempt.objects.create(job=job, number=1, state=Attempt.State.RUNNING, started_at=now)
    opened = now - timedelta(seconds=2)
    round_ = Round.objects.create(
        attempt=attempt,
        number=1,
        state=Round.State.CLOSED,
        weights_digest="a" * 64,
        weights_size_bytes=1024,
        num_quorum=1,
        opened_at=opened,
        deadline_at=now,
        closed_at=now,
        metrics={"train/loss": 0.25, "test/accuracy": 0.875},
    )
    for index, name in enumerate(("node-a", "node-b")):
        assignment = Assignment.objects.create(
            attempt=attempt, node=enrol(name, admin), index=index, slots=1, state=Assignment.State.ACTIVE
        )
        returned = index == 0
        Participation.objects.create(
            round=round_,
            assignment=assignment,
            state=Participation.State.RETURNED if returned else Participation.State.REFUSED,
            state_reason="" if returned else "The tensor 'net.0.weight' holds NaN.",
            returned_at=now,
            num_examples=719 if returned else 0,
            size_bytes=2048 if returned else 0,
            bytes_down=1024 if returned else 0,
            num_steps=23 if returned else 0,
            label_counts={"2": 19, "9": 700} if returned else None,
            seconds_training=1.5 if returned else 0.0,
            metrics={"train/loss": 0.25} if returned else {},
        )
    blob = save_bytes(b"weights")
    Artifact.objects.create(
        job=job, attempt=attempt, name="model.safetensors", digest=blob.digest, size_bytes=blob.size_bytes
    )
    return job

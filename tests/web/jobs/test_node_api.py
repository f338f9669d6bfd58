"""What nodes deliver over HTTP, with their secret."""

import json

import pytest
from django.test import Client

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED, facts
from trainer.protocol import EnrolRequest, UpdateOffer
from webapp.fleet import services as fleet
from webapp.fleet.credentials import hash_secret
from webapp.fleet.models import Node
from webapp.jobs import services
from webapp.jobs.models import Attempt, Participation

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def secrets(nodes) -> list[str]:
    """The nodes' secrets: shown once at enrolment, so they are made anew for the test."""
    made = [f"tms_test-{index}" for index, _ in enumerate(nodes)]
    for node, secret in zip(nodes, made, strict=True):
        Node.objects.filter(pk=node.node.pk).update(secret_hash=hash_secret(secret))
    return made


def call(method: str, path: str, secret: str, body: dict | None = None):
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    data = json.dumps(body) if body is not None else ""
    return Client().generic(method, f"/node/v1/attempts/{path}", data, content_type="application/json", headers=headers)


def test_an_update_is_taken(team, owner, nodes, secrets, conductor):
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    asked = nodes[0].asked()
    offer = UpdateOffer(
        digest=nodes[0].update_for(asked.weights, 1).digest, num_examples=10, metrics={"train/loss": float("nan")}
    )
    path = f"{asked.attempt_id}/rounds/1/update"
    answer = call("POST", path, secrets[0], offer.model_dump(mode="json"))
    assert (answer.status_code, answer.json()) == (200, {"accepted": True, "reason": "", "missing_bytes": False})
    assert Participation.objects.get(assignment__index=0).metrics == {"train/loss": "NaN"}
    assert call("POST", path, "", {}).status_code == 401
    assert call("POST", path, "tms_wrong", {}).status_code == 401
    assert call("POST", path, secrets[0], {"digest": "zz"}).status_code == 422
    assert call("GET", path, secrets[0]).status_code == 405


def test_ranks_meet_where_group_rank_0_says(team, owner, nodes, secrets, conductor, admin):
    services.submit_job(team=team, owner=owner, spec=DISTRIBUTED)
    conductor.work()
    path = f"{Attempt.objects.get().pk}/rendezvous"
    where = {"address": "10.0.0.1", "port": 29500}
    assert call("GET", path, secrets[1]).status_code == 404
    wrong = call("PUT", path, secrets[1], where)
    assert (wrong.status_code, wrong.json()["detail"]) == (
        403,
        f"node-2 does not host the rendezvous of attempt {Attempt.objects.get().pk}.",
    )
    assert call("PUT", path, secrets[0], where).status_code == 204
    assert call("GET", path, secrets[1]).json() == where
    _, token = fleet.create_enrolment_token(actor=admin, preapproved=True)
    foreign = fleet.enrol_node(request=EnrolRequest(token=token, name="node-3", facts=facts()))
    assert call("GET", path, foreign.secret).status_code == 404
    assert call("PUT", path, secrets[0], {**where, "port": 0}).status_code == 422


def test_an_artifact_of_somebody_elses_attempt_is_refused(team, owner, nodes, secrets, conductor):
    services.submit_job(team=team, owner=owner, spec=DISTRIBUTED)
    conductor.work()
    body = {"name": "model.safetensors", "digest": "0" * 64}
    assert call("POST", "999999/artifacts", secrets[0], body).json()["accepted"] is False
    assert call("POST", "1/artifacts", secrets[0], {**body, "name": "../x"}).status_code == 422

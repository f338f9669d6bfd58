"""GET /node/v1/me, and the door of the nodes' interface."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.conftest import browser_of
from tests.web.fleet.helpers import enrol
from webapp.fleet import services

pytestmark = pytest.mark.django_db


def as_node(secret: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {secret}"})


def test_a_node_sees_itself_approved(admin, broker, settings):
    settings.BROKER_URL = "redis://default:secret@127.0.0.1:6400/0"
    node, secret = enrol(admin, preapproved=False)
    client = as_node(secret)
    assert client.get("/node/v1/me").json() == {"state": "pending", "name": "node-1", "broker_url": None}
    services.approve_node(node=node, actor=admin)
    assert client.get("/node/v1/me").json() == {
        "state": "offline",
        "name": "node-1",
        "broker_url": "redis://127.0.0.1:6400/0",
    }


def test_a_revoked_node_is_told(admin, broker):
    node, secret = enrol(admin)
    services.revoke_node(node=node, actor=admin)
    answer = as_node(secret).get("/node/v1/me")
    assert answer.status_code == 401
    assert answer.json()["detail"].startswith("node-1 is out of the fleet (revoked by admin)")


def test_a_stranger_is_nobody(broker):
    answer = as_node("tms_wrong").get("/node/v1/me")
    assert answer.status_code == 401
    assert "not known here" in answer.json()["detail"]


@pytest.mark.parametrize("person", [None, "owner", "admin"])
def test_people_are_no_nodes(person, request):
    client = browser_of(person and request.getfixturevalue(person))
    assert client.get("/node/v1/me").status_code == 401


def test_a_waiting_node_gets_no_further(admin):
    _, secret = enrol(admin, preapproved=False)
    answer = as_node(secret).get("/node/v1/attempts/1/rendezvous")
    assert answer.status_code == 403
    assert "waits for approval" in answer.json()["detail"]

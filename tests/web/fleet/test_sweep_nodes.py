"""Silent nodes go offline, but only when somebody listened."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from tests.web.fleet.helpers import bring_online, enrol
from webapp.fleet import services
from webapp.fleet.models import Node

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(admin, broker) -> Node:
    return bring_online(enrol(admin)[0])


def silent_for(node: Node, seconds: float) -> None:
    Node.objects.filter(pk=node.pk).update(last_seen_at=timezone.now() - timedelta(seconds=seconds))


def ingest(broker, *, since: float, at: float = 0.0) -> None:
    """Ingest has been draining since so many seconds ago, and said so `at` seconds ago."""
    now = time.time()
    broker.set("ingest:alive", json.dumps({"since": now - since, "at": now - at}))


def state_after_sweep(node: Node) -> str:
    services.sweep_nodes()
    node.refresh_from_db()
    return node.state


def test_a_silent_node_goes_offline_with_a_reason(node, broker):
    ingest(broker, since=60)
    silent_for(node, 14)
    assert state_after_sweep(node) == "offline"
    assert node.state_reason == "node-1 stopped answering: its last sign came 14 s ago."
    assert broker.llen("conductor") == 4  # two tasks when it came, two when it went


def test_a_node_that_answers_stays(node, broker):
    ingest(broker, since=60)
    silent_for(node, 12)
    assert state_after_sweep(node) == "online"


@pytest.mark.parametrize(
    ("since", "at"),
    [(3, 0), (600, 6)],
    ids=["ingest is back for 3 s only", "ingest went silent itself"],
)
def test_nobody_is_judged_by_what_nobody_heard(node, broker, since, at):
    ingest(broker, since=since, at=at)
    silent_for(node, 60)
    assert state_after_sweep(node) == "online"


def test_nobody_is_judged_without_ingest_or_broker(node, broker, settings):
    silent_for(node, 60)
    assert state_after_sweep(node) == "online"
    settings.BROKER_URL = "redis://127.0.0.1:1/0"
    assert state_after_sweep(node) == "online"


def test_it_comes_back(node, broker):
    ingest(broker, since=60)
    silent_for(node, 14)
    assert state_after_sweep(node) == "offline"
    assert bring_online(node).state == "online"


def test_offline_waiting_and_revoked_nodes_are_left_alone(admin, node, broker):
    ingest(broker, since=60)
    waiting, _ = enrol(admin, "node-2", preapproved=False)
    services.revoke_node(node=node, actor=admin)
    Node.objects.update(last_seen_at=timezone.now() - timedelta(hours=1))
    assert state_after_sweep(node) == "revoked"
    assert state_after_sweep(waiting) == "pending"

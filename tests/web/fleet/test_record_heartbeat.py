"""Heartbeats in: facts, load, state."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.web.fleet.helpers import FACTS, bring_online, enrol, heartbeat
from webapp.core.models import Transition
from webapp.fleet import services
from webapp.fleet.models import Node

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(admin, broker) -> Node:
    return enrol(admin)[0]


def wake_ups(broker) -> int:
    """How many tasks wait for the conductor."""
    return int(broker.llen("conductor"))


def test_the_first_one_brings_it_online(node, broker):
    bring_online(node, cpu_percent=50, attempts=[3])
    assert (node.state, node.boot_id, node.cpu_percent, node.running_attempts) == ("online", "boot-a", 50.0, [3])
    assert timezone.now() - node.last_seen_at < timedelta(seconds=5)
    assert Transition.objects.filter(thread=node.thread).latest("id").new == "online"
    assert wake_ups(broker) == 2


def test_in_the_steady_state_it_is_one_update(node, broker, django_assert_num_queries):
    bring_online(node)
    broker.delete("conductor")
    with django_assert_num_queries(1):
        services.record_heartbeat(node_id=node.pk, heartbeat=heartbeat(cpu_percent=99))
    node.refresh_from_db()
    assert node.cpu_percent == 99
    assert wake_ups(broker) == 0


def test_new_facts_are_kept(node):
    bring_online(node, facts=FACTS.model_copy(update={"slots": 5, "address": "10.0.0.7"}))
    assert (node.slots, node.facts.address) == (5, "10.0.0.7")


def test_a_new_boot_is_noted_and_wakes_the_jobs(node, broker):
    bring_online(node)
    broker.delete("conductor")
    bring_online(node, boot_id="boot-b")
    assert (node.state, node.boot_id) == ("online", "boot-b")
    assert wake_ups(broker) == 2


def test_going_away_is_offline_at_once(node, broker):
    bring_online(node, attempts=[3])
    broker.delete("conductor")
    bring_online(node, going_away=True, attempts=[3])
    assert (node.state, node.running_attempts, node.state_reason) == ("offline", [], "node-1 was stopped.")
    assert wake_ups(broker) == 2
    bring_online(node, going_away=True)
    assert node.state == "offline"


@pytest.mark.parametrize("state", ["pending", "revoked"])
def test_who_is_not_in_the_fleet_has_no_say(admin, broker, state):
    node, _ = enrol(admin, preapproved=False)
    if state == "revoked":
        services.revoke_node(node=node, actor=admin)
    broker.delete("conductor")
    bring_online(node, cpu_percent=50)
    assert (node.state, node.cpu_percent, node.last_seen_at) == (state, 0.0, None)
    assert wake_ups(broker) == 0


def test_an_unknown_node_is_nobody(broker):
    services.record_heartbeat(node_id="0" * 32, heartbeat=heartbeat())
    assert not Node.objects.exists()

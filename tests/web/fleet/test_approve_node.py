"""Approve, refuse, revoke: administrators only, one winner, an audit row each."""

from __future__ import annotations

import pytest

from tests.web.fleet.helpers import bring_online, enrol
from webapp.core.errors import Refusal
from webapp.core.models import AuditEntry, Transition
from webapp.fleet import services
from webapp.fleet.models import Node

pytestmark = pytest.mark.django_db

ACTS = {"approve": services.approve_node, "refuse": services.refuse_node, "revoke": services.revoke_node}


@pytest.mark.parametrize(("act", "state"), [("approve", "offline"), ("refuse", "revoked"), ("revoke", "revoked")])
def test_it_works(admin, broker, act, state):
    node, _ = enrol(admin, preapproved=False)
    ACTS[act](node=node, actor=admin)
    node.refresh_from_db()
    assert node.state == state
    entry = AuditEntry.objects.get(act=f"{act}_node")
    assert entry.actor == admin
    assert str(node.pk) in entry.target
    last = Transition.objects.filter(thread=node.thread).latest("id")
    assert (last.old, last.new, last.actor) == ("pending", state, "admin")


@pytest.mark.parametrize("person", ["owner", "teammate", "stranger"])
@pytest.mark.parametrize("act", list(ACTS))
def test_only_administrators(admin, person, act, request):
    node, _ = enrol(admin, preapproved=False)
    with pytest.raises(Refusal, match="Only a site administrator") as refusal:
        ACTS[act](node=node, actor=request.getfixturevalue(person))
    assert refusal.value.status == 403
    node.refresh_from_db()
    assert node.state == "pending"
    assert not AuditEntry.objects.filter(act=f"{act}_node").exists()


@pytest.mark.parametrize("act", ["approve", "refuse"])
def test_a_node_in_use_waits_for_nothing(admin, broker, act):
    node = bring_online(enrol(admin)[0])
    with pytest.raises(Refusal, match="it is online"):
        ACTS[act](node=node, actor=admin)
    assert Node.objects.get().state == "online"


@pytest.mark.parametrize("act", ["approve", "refuse"])
def test_a_lost_race_is_said(admin, broker, act):
    node, _ = enrol(admin, preapproved=False)
    stale = Node.objects.get(pk=node.pk)
    services.approve_node(node=node, actor=admin)
    with pytest.raises(Refusal, match="Reload the page"):
        ACTS[act](node=stale, actor=admin)
    assert AuditEntry.objects.filter(act="approve_node").count() == 1


def test_revoking_wins_over_a_heartbeat(admin, broker):
    stale, _ = enrol(admin)
    bring_online(Node.objects.get(pk=stale.pk))
    assert stale.state == "offline"
    services.revoke_node(node=stale, actor=admin)
    assert Node.objects.get().state == "revoked"


def test_revoking_twice_is_said(admin, broker):
    node, _ = enrol(admin)
    services.revoke_node(node=Node.objects.get(), actor=admin)
    with pytest.raises(Refusal, match="it is revoked"):
        services.revoke_node(node=node, actor=admin)

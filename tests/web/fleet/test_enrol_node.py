"""A node joins with a one-time token."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from tests.web.fleet.helpers import FACTS, enrol
from trainer.protocol import EnrolRequest
from webapp.core.errors import Refusal
from webapp.core.models import AuditEntry, Transition
from webapp.fleet import services
from webapp.fleet.credentials import hash_secret
from webapp.fleet.models import EnrolmentToken, Node

pytestmark = pytest.mark.django_db


def ask(token: str, name: str = "node-1") -> EnrolRequest:
    return EnrolRequest(token=token, name=name, facts=FACTS)


def test_a_token_adds_one_waiting_node(admin):
    token, text = services.create_enrolment_token(actor=admin)
    answer = services.enrol_node(request=ask(text))
    node = Node.objects.get(pk=answer.node_id)
    assert (node.state, node.name, node.slots, node.facts) == ("pending", "node-1", 2, FACTS)
    token.refresh_from_db()
    assert token.node == node
    assert token.used_at is not None
    assert list(Transition.objects.filter(thread=node.thread).values_list("old", "new")) == [("", "pending")]


def test_only_hashes_are_kept(admin):
    node, secret = enrol(admin)
    assert secret.startswith("tms_")
    assert node.secret_hash == hash_secret(secret)
    token, text = services.create_enrolment_token(actor=admin)
    assert text.startswith("tmj_")
    assert token.hash == hash_secret(text)
    assert text not in str(list(AuditEntry.objects.values()))


def test_a_preapproved_token_needs_no_one(admin, broker):
    node, _ = enrol(admin)
    assert node.state == "offline"
    approval = AuditEntry.objects.get(act="approve_node")
    assert approval.actor == admin
    assert approval.details["reason"] == node.state_reason


def test_a_used_token_is_refused(admin):
    _, text = services.create_enrolment_token(actor=admin)
    services.enrol_node(request=ask(text))
    with pytest.raises(Refusal, match="was used already") as refusal:
        services.enrol_node(request=ask(text, "node-2"))
    assert refusal.value.status == 403
    assert Node.objects.count() == 1


def test_an_expired_token_is_refused(admin):
    _, text = services.create_enrolment_token(actor=admin, ttl=timedelta(hours=1))
    EnrolmentToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(Refusal, match="has expired"):
        services.enrol_node(request=ask(text))


def test_another_servers_token_is_refused():
    with pytest.raises(Refusal, match="does not know this enrolment token"):
        services.enrol_node(request=ask("tmj_from-elsewhere"))


def test_a_taken_name_is_refused_and_the_token_stays_good(admin):
    enrol(admin, "node-1")
    _, text = services.create_enrolment_token(actor=admin)
    with pytest.raises(Refusal, match="a node called 'node-1' already: choose another name with --name"):
        services.enrol_node(request=ask(text, "node-1"))
    assert services.enrol_node(request=ask(text, "node-2")).node_id


def test_a_revoked_nodes_name_is_free_again(admin):
    old, _ = enrol(admin, "node-1")
    services.revoke_node(node=old, actor=admin)
    new, _ = enrol(admin, "node-1")
    assert new.pk != old.pk


@pytest.mark.django_db(transaction=True)
def test_of_two_enrolments_with_one_token_one_wins(admin):
    _, text = services.create_enrolment_token(actor=admin)
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def join(name: str) -> None:
        barrier.wait()
        try:
            services.enrol_node(request=ask(text, name))
            outcomes.append("in")
        except Refusal as refusal:
            outcomes.append(refusal.sentence)
        finally:
            connection.close()

    threads = [threading.Thread(target=join, args=(name,)) for name in ("node-1", "node-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[1] == "in"
    assert "was used already" in sorted(outcomes)[0]
    assert Node.objects.count() == 1


def test_over_http(admin):
    _, text = services.create_enrolment_token(actor=admin)
    body = ask(text).model_dump(mode="json")
    answer = Client().post("/node/v1/enrol", body, content_type="application/json")
    assert answer.status_code == 200
    assert services.authenticate_node(secret=answer.json()["secret"]) == Node.objects.get()
    again = Client().post("/node/v1/enrol", body, content_type="application/json")
    assert again.status_code == 403
    assert "was used already" in again.json()["detail"]


def test_a_name_that_is_no_name_is_named(admin):
    _, text = services.create_enrolment_token(actor=admin)
    body = {**ask(text).model_dump(mode="json"), "name": "My Node!"}
    answer = Client().post("/node/v1/enrol", body, content_type="application/json")
    assert answer.status_code == 422
    assert "name" in answer.json()["detail"]


@pytest.mark.parametrize("person", ["owner", "teammate", "stranger"])
def test_only_administrators_make_tokens(person, request):
    with pytest.raises(Refusal, match="Only a site administrator") as refusal:
        services.create_enrolment_token(actor=request.getfixturevalue(person))
    assert refusal.value.status == 403

"""GET /api/v1/nodes and /data-sources."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.conftest import browser_of
from tests.web.fleet.helpers import FACTS, bring_online, enrol, table
from webapp.fleet.models import Node

pytestmark = pytest.mark.django_db


@pytest.fixture
def node(admin, broker, team) -> Node:
    facts = FACTS.model_copy(update={"sources": [table("wards")]})
    node = bring_online(enrol(admin, facts=facts)[0], facts=facts, attempts=[4])
    node.teams.add(team)
    return node


@pytest.mark.parametrize(
    ("person", "status", "names"),
    [
        ("owner", 200, ["node-1"]),
        ("teammate", 200, ["node-1"]),
        ("stranger", 200, []),
        ("admin", 200, ["node-1"]),
        (None, 401, None),
    ],
)
def test_the_people(node, person, status, names, request):
    client = browser_of(person and request.getfixturevalue(person))
    answer = client.get("/api/v1/nodes")
    assert answer.status_code == status
    if names is not None:
        assert [row["name"] for row in answer.json()] == names
        one = client.get(f"/api/v1/nodes/{node.pk}")
        assert one.status_code == (200 if names else 404)
        sources = {source["name"]: source["nodes"] for source in client.get("/api/v1/data-sources").json()}
        assert sources.get("wards") == (["node-1"] if names else None)
        assert sources["digits"] == names


def test_what_a_node_looks_like(node, owner):
    (row,) = browser_of(owner).get("/api/v1/nodes").json()
    assert row["state"] == "online"
    assert row["state_reason"] == "node-1 answers."
    assert row["teams"] == ["cardiology"]
    assert row["sources"] == ["wards"]
    assert row["running_attempts"] == [4]
    assert (row["cpu_percent"], row["memory_bytes"], row["memory_used_bytes"]) == (12.5, 16 * 2**30, 2**30)
    assert not {"secret_hash", "facts_json", "boot_id"} & row.keys()


def test_the_number_of_queries_does_not_grow(node, admin, django_assert_max_num_queries):
    for number in range(2, 6):
        enrol(admin, f"node-{number}")
    client = browser_of(admin)
    with django_assert_max_num_queries(4):
        assert len(client.get("/api/v1/nodes").json()) == 5


def test_writing_is_not_possible(node, admin):
    assert browser_of(admin).post("/api/v1/nodes").status_code in (403, 405)


def test_an_unknown_node(owner):
    assert browser_of(owner).get(f"/api/v1/nodes/{'0' * 8}-0000-0000-0000-{'0' * 12}").status_code == 404
    assert Client().get("/api/v1/nodes/x").status_code in (401, 404)

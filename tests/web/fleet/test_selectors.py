"""Who sees which nodes and sources."""

from __future__ import annotations

import pytest

from tests.web.fleet.helpers import FACTS, enrol, table
from trainer.protocol import Facts
from trainer.sources import BUILTIN_SOURCES, SourceSchema
from webapp.fleet import selectors, services
from webapp.teams.models import Team

pytestmark = pytest.mark.django_db


def with_sources(*sources: SourceSchema) -> Facts:
    return FACTS.model_copy(update={"sources": list(sources)})


@pytest.fixture
def fleet(admin, broker, team, stranger):
    """One node for all, one for each team, one that waits, one that is revoked."""
    nodes = {name: enrol(admin, name)[0] for name in ("shared", "cardiology-1", "oncology-1", "gone")}
    nodes["cardiology-1"].teams.add(team)
    nodes["oncology-1"].teams.add(Team.objects.get(slug="oncology"))
    nodes["new"] = enrol(admin, "new", preapproved=False)[0]
    services.revoke_node(node=nodes["gone"], actor=admin)
    return nodes


@pytest.mark.parametrize(
    ("person", "names"),
    [
        ("owner", ["cardiology-1", "shared"]),
        ("teammate", ["cardiology-1", "shared"]),
        ("stranger", ["oncology-1", "shared"]),
        ("admin", ["cardiology-1", "gone", "new", "oncology-1", "shared"]),
    ],
)
def test_nodes_visible_to(fleet, person, names, request):
    user = request.getfixturevalue(person)
    assert [node.name for node in selectors.nodes_visible_to(user)] == names


def test_a_node_of_two_of_ones_teams_is_listed_once(fleet, owner, team):
    other = Team.objects.create(name="Radiology", slug="radiology")
    other.members.add(owner)
    fleet["cardiology-1"].teams.add(other)
    assert [node.name for node in selectors.nodes_visible_to(owner)] == ["cardiology-1", "shared"]


def test_usable_nodes(fleet, team):
    assert [node.name for node in selectors.usable_nodes(team)] == ["cardiology-1", "shared"]


def test_builtin_sources_come_first_and_are_everywhere(fleet, team):
    sources = selectors.known_sources(team)
    assert [source.schema for source in sources] == list(BUILTIN_SOURCES.values())
    assert {source.nodes for source in sources} == {("cardiology-1", "shared")}


def test_a_source_of_several_nodes_is_one(admin, broker, team):
    enrol(admin, "a", facts=with_sources(table("wards", rows=500), table("beds")))
    enrol(admin, "b", facts=with_sources(table("wards", rows=300)))
    *_, beds, wards = selectors.known_sources(team)
    assert (beds.schema.name, beds.nodes) == ("beds", ("a",))
    assert (wards.schema.name, wards.nodes, wards.schema.num_rows) == ("wards", ("a", "b"), 300)


def test_of_two_shapes_the_commoner_one_is_the_source(admin, broker, team):
    enrol(admin, "a", facts=with_sources(table("wards", columns=("x",))))
    enrol(admin, "b", facts=with_sources(table("wards")))
    enrol(admin, "c", facts=with_sources(table("wards")))
    wards = selectors.known_sources(team)[-1]
    assert (wards.nodes, wards.schema.shape) == (("b", "c"), (2,))


def test_nobody_renames_a_builtin(admin, broker, team):
    enrol(admin, "a", facts=with_sources(table("digits")))
    assert [source.schema.name for source in selectors.known_sources(team)] == list(BUILTIN_SOURCES)


def test_anothers_source_is_not_known(admin, broker, fleet, team):
    node, _ = enrol(admin, "oncology-2", facts=with_sources(table("tumours")))
    node.teams.add(Team.objects.get(slug="oncology"))
    assert [source.builtin for source in selectors.known_sources(team)] == [True] * len(BUILTIN_SOURCES)


@pytest.mark.parametrize(
    ("broker_url", "told"),
    [
        ("redis://default:se:c@ret@10.0.0.1:6379/0", "redis://10.0.0.1:6379/0"),
        ("rediss://broker.example.org:6380/1", "rediss://broker.example.org:6380/1"),
    ],
)
def test_nodes_are_told_no_credentials(settings, broker_url, told):
    settings.BROKER_URL = broker_url
    assert selectors.broker_url_for_nodes() == told
    settings.NODE_BROKER_URL = "rediss://outside.example.org:6380"
    assert selectors.broker_url_for_nodes() == "rediss://outside.example.org:6380"

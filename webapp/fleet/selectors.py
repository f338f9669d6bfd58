"""Reads of nodes and of the data sources that they declare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet

from trainer.sources import BUILTIN_SOURCES, SourceSchema
from webapp.fleet.models import Node
from webapp.teams.models import Team
from webapp.teams.selectors import teams_of


@dataclass(frozen=True)
class KnownSource:
    """A data source and the names of the nodes that can read it.

    Nodes may each hold rows of their own under one name; `schema.num_rows` is then the smallest node's count.
    """

    schema: SourceSchema
    nodes: tuple[str, ...]
    builtin: bool


def nodes_visible_to(user: User) -> QuerySet[Node]:
    """All nodes for a site administrator; for others the approved ones that one of their teams may use."""
    if user.is_staff:
        return Node.objects.all()
    return Node.objects.filter(_open_to(teams_of(user)), state__in=Node.APPROVED).distinct()


def usable_nodes(team: Team) -> QuerySet[Node]:
    """The approved nodes that `team` may use, online or not."""
    return Node.objects.filter(_open_to([team]), state__in=Node.APPROVED).distinct()


def known_sources(team: Team) -> list[KnownSource]:
    """The data sources that a job of `team` can name: the built-in ones first, then by name what its nodes declare."""
    return _sources_of(usable_nodes(team))


def sources_visible_to(user: User) -> list[KnownSource]:
    """The data sources of all nodes that `user` may see, for the page and the API that list them."""
    return _sources_of(nodes_visible_to(user).filter(state__in=Node.APPROVED))


def broker_url_for_nodes() -> str:
    """The broker's address as nodes are told it: without anyone's credentials."""
    if settings.NODE_BROKER_URL:
        return str(settings.NODE_BROKER_URL)
    scheme, _, rest = settings.BROKER_URL.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _open_to(teams: Iterable[Team]) -> Q:
    return Q(teams=None) | Q(teams__in=teams)


def _sources_of(nodes: Iterable[Node]) -> list[KnownSource]:
    nodes = list(nodes)
    everywhere = tuple(node.name for node in nodes)
    builtin = [KnownSource(schema, everywhere, builtin=True) for schema in BUILTIN_SOURCES.values()]
    declared: defaultdict[str, defaultdict[SourceSchema, list[tuple[str, SourceSchema]]]]
    declared = defaultdict(lambda: defaultdict(list))
    for node in nodes:
        for schema in node.facts.sources:
            if schema.name not in BUILTIN_SOURCES:
                declared[schema.name][_shape_of(schema)].append((node.name, schema))
    # Where nodes disagree about a source's shape, the shape that most of them have is the source.
    return builtin + [_joined(max(declared[name].values(), key=len)) for name in sorted(declared)]


def _shape_of(schema: SourceSchema) -> SourceSchema:
    """What has to agree between nodes, for one model to fit all of them: everything but the title and the count."""
    return schema.model_copy(update={"num_rows": 1, "title": ""})


def _joined(holders: list[tuple[str, SourceSchema]]) -> KnownSource:
    rows = min(schema.num_rows for _, schema in holders)
    return KnownSource(
        holders[0][1].model_copy(update={"num_rows": rows}), tuple(name for name, _ in holders), builtin=False
    )

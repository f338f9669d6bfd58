"""The public API of the fleet: nodes and data sources, read-only."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.http import Http404
from ninja import Router, Schema

from trainer.protocol import Gpu, SourceBudget
from trainer.sources import SourceSchema
from webapp.fleet import selectors
from webapp.fleet.models import Node
from webapp.teams.auth import ApiRequest

router = Router(tags=["nodes"])


class NodeOut(Schema):
    id: UUID
    name: str
    state: str
    state_reason: str
    state_changed_at: datetime
    last_seen_at: datetime | None
    slots: int
    labels: list[str]
    teams: list[str]
    """Slugs of the teams that may use the node; none means all."""
    cpu_percent: float
    memory_bytes: int
    memory_used_bytes: int
    gpus: list[Gpu]
    running_attempts: list[int]
    sources: list[str]
    """Names of the node's own data sources."""
    budgets: list[SourceBudget]
    """Privacy budgets that the node's owner keeps, and what all jobs have spent of them."""
    agent_version: str

    @classmethod
    def of(cls, node: Node) -> NodeOut:
        facts = node.facts
        return cls(
            id=node.pk,
            name=node.name,
            state=node.state,
            state_reason=node.state_reason,
            state_changed_at=node.state_changed_at,
            last_seen_at=node.last_seen_at,
            slots=node.slots,
            labels=node.labels,
            teams=[team.slug for team in node.teams.all()],
            cpu_percent=node.cpu_percent,
            memory_bytes=facts.memory_bytes,
            memory_used_bytes=node.memory_used_bytes,
            gpus=facts.gpus,
            running_attempts=node.running_attempts,
            sources=[source.name for source in facts.sources],
            budgets=facts.budgets,
            agent_version=facts.agent_version,
        )


class SourceOut(Schema):
    name: str
    builtin: bool
    data: SourceSchema
    """Its schema and counts; for rows that each node has of its own, the smallest node's count."""
    nodes: list[str]
    """Names of the nodes that can read it."""


@router.get("/nodes", response=list[NodeOut], summary="The nodes that you may see")
def list_nodes(request: ApiRequest) -> list[NodeOut]:
    nodes = selectors.nodes_visible_to(request.user).prefetch_related("teams")
    return [NodeOut.of(node) for node in nodes]


@router.get("/nodes/{uuid:node_id}", response=NodeOut, summary="One node")
def get_node(request: ApiRequest, node_id: UUID) -> NodeOut:
    node = selectors.nodes_visible_to(request.user).filter(pk=node_id).first()
    if node is None:
        raise Http404
    return NodeOut.of(node)


@router.get("/data-sources", response=list[SourceOut], summary="The data sources that your jobs can name")
def list_data_sources(request: ApiRequest) -> list[SourceOut]:
    return [
        SourceOut(name=source.schema.name, builtin=source.builtin, data=source.schema, nodes=list(source.nodes))
        for source in selectors.sources_visible_to(request.user)
    ]

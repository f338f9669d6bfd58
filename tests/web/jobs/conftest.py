from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.web.jobs.far_end import Conductor, FarNode, facts
from trainer.protocol import EnrolRequest
from trainer.sources import SourceSchema
from webapp.fleet import services as fleet
from webapp.fleet.models import Node

MakeNode = Callable[..., FarNode]


@pytest.fixture(autouse=True)
def blob_dir(settings, tmp_path):
    settings.BLOB_DIR = tmp_path / "blobs"


@pytest.fixture
def conductor(broker: redis.Redis) -> Conductor:
    return Conductor(broker)


@pytest.fixture
def make_node(broker: redis.Redis, admin) -> MakeNode:
    """Enrol a node as any node is enrolled, and hear its first heartbeat."""

    def make(name: str, *, slots: int = 2, sources: tuple[SourceSchema, ...] = ()) -> FarNode:
        _, token = fleet.create_enrolment_token(actor=admin, preapproved=True)
        answer = fleet.enrol_node(request=EnrolRequest(token=token, name=name, facts=facts(slots, sources)))
        far = FarNode(broker, Node.objects.get(pk=answer.node_id), slots=slots, sources=sources)
        far.beat()
        return far

    return make


@pytest.fixture
def nodes(make_node: MakeNode) -> list[FarNode]:
    """Two nodes online, node-1 and node-2, with two slots each."""
    return [make_node("node-1"), make_node("node-2")]

"""Nodes for the tests, made the way real ones are: by a token and the services."""

from __future__ import annotations

from django.contrib.auth.models import User

from trainer.protocol import EnrolRequest, Facts, Heartbeat
from trainer.sources import SourceSchema
from webapp.fleet import services
from webapp.fleet.models import Node

FACTS = Facts(
    hostname="gpu-box",
    platform="Linux",
    agent_version="0.1.0",
    torch_version="2.13.0",
    python_version="3.11.2",
    num_cpus=8,
    memory_bytes=16 * 2**30,
    slots=2,
)


def enrol(admin: User, name: str = "node-1", *, preapproved: bool = True, facts: Facts = FACTS) -> tuple[Node, str]:
    """Return a node and its secret; approved unless told otherwise."""
    _, token = services.create_enrolment_token(actor=admin, preapproved=preapproved)
    answer = services.enrol_node(request=EnrolRequest(token=token, name=name, facts=facts))
    return Node.objects.get(pk=answer.node_id), answer.secret


def heartbeat(**changes: object) -> Heartbeat:
    return Heartbeat.model_validate(
        {"boot_id": "boot-a", "facts": FACTS, "cpu_percent": 12.5, "memory_used_bytes": 2**30, **changes}
    )


def bring_online(node: Node, **changes: object) -> Node:
    services.record_heartbeat(node_id=node.pk, heartbeat=heartbeat(**changes))
    node.refresh_from_db()
    return node


def table(name: str, *, rows: int = 100, columns: tuple[str, ...] = ("a", "b")) -> SourceSchema:
    return SourceSchema(
        name=name,
        task="classification",
        shape=(len(columns),),
        num_rows=rows,
        num_classes=2,
        columns=columns,
        label="y",
    )

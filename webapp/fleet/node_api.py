"""The fleet's part of the nodes' own HTTP interface. The messages are those of trainer/protocol.py."""

from __future__ import annotations

from django.http import HttpRequest
from ninja import Router

from trainer.protocol import EnrolRequest, EnrolResponse, NodeStatus
from webapp.fleet import services
from webapp.fleet.auth import NodeRequest, WaitingNodeBearer
from webapp.fleet.models import Node
from webapp.fleet.selectors import broker_url_for_nodes

router = Router()


@router.post("/enrol", auth=None, response=EnrolResponse)
def enrol(request: HttpRequest, body: EnrolRequest) -> EnrolResponse:
    return services.enrol_node(request=body)


@router.get("/me", auth=WaitingNodeBearer(), response=NodeStatus)
def me(request: NodeRequest) -> NodeStatus:
    node = request.auth
    approved = node.state in Node.APPROVED
    return NodeStatus(state=node.state, name=node.name, broker_url=broker_url_for_nodes() if approved else None)

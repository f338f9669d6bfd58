"""The door for nodes: `Authorization: Bearer tms_...`."""

from __future__ import annotations

from django.http import HttpRequest
from ninja.security import HttpBearer

from webapp.core.errors import Refusal
from webapp.fleet.models import Node
from webapp.fleet.services import authenticate_node


class NodeRequest(HttpRequest):
    """A request that passed the door."""

    auth: Node


def known_node(secret: str) -> Node:
    """Return the node that the secret belongs to, approved or not. Raises Refusal (401) for unknown and revoked ones."""
    node = authenticate_node(secret=secret)
    if node is None:
        raise Refusal("This node is not known here: join again with a new enrolment token.", status=401)
    if node.state == Node.State.REVOKED:
        raise Refusal(
            f"{node.name} is out of the fleet ({node.state_reason.rstrip('.').lower()}): "
            "ask the administrator for a new enrolment token to join again.",
            status=401,
        )
    return node


def approved_node(secret: str) -> Node:
    """As `known_node`, and raises Refusal (403) while the node waits for approval."""
    node = known_node(secret)
    if node.state == Node.State.PENDING:
        raise Refusal(f"{node.name} waits for approval: an administrator approves it on the page Nodes.", status=403)
    return node


class NodeBearer(HttpBearer):
    """Lets approved nodes in; `request.auth` is the Node."""

    def authenticate(self, request: HttpRequest, token: str) -> Node:
        return approved_node(token)


class WaitingNodeBearer(HttpBearer):
    """Lets nodes in that wait for approval, too."""

    def authenticate(self, request: HttpRequest, token: str) -> Node:
        return known_node(token)

"""Every write to nodes and enrolment tokens. Each administrative act leaves an audit row."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils import timezone

from trainer.protocol import EnrolRequest, EnrolResponse
from webapp.core.audit import record_act
from webapp.core.errors import Refusal
from webapp.core.models import Transition
from webapp.fleet.broker_users import cut_access, grant_access, sync_broker_users
from webapp.fleet.credentials import ENROLMENT_PREFIX, NODE_PREFIX, hash_secret, new_secret
from webapp.fleet.dispatch import send_to_node
from webapp.fleet.liveness import record_heartbeat, sweep_nodes, wake_jobs
from webapp.fleet.models import EnrolmentToken, Node

__all__ = [
    "approve_node",
    "authenticate_node",
    "create_enrolment_token",
    "enrol_node",
    "record_heartbeat",
    "refuse_node",
    "revoke_node",
    "send_to_node",
    "sweep_nodes",
    "sync_broker_users",
]


RESERVED_NAMES = ("aggregate", "server")
"""Sources of the server's own curves, which no node may report as."""


@transaction.atomic
def create_enrolment_token(
    *, actor: User, preapproved: bool = False, ttl: timedelta = timedelta(hours=1)
) -> tuple[EnrolmentToken, str]:
    """Make a one-time token and return it with its text, which is not kept. Raises Refusal (403)."""
    _check_administrator(actor)
    text = new_secret(ENROLMENT_PREFIX)
    token = EnrolmentToken.objects.create(
        hash=hash_secret(text), created_by=actor, preapproved=preapproved, expires_at=timezone.now() + ttl
    )
    record_act(
        actor=actor,
        act="create_enrolment_token",
        target=str(token),
        preapproved=preapproved,
        expires_at=token.expires_at.isoformat(),
    )
    return token, text


def enrol_node(*, request: EnrolRequest) -> EnrolResponse:
    """Add the node that asks with a token. It waits for approval, unless the token carries it.

    Raises Refusal (403) for a token that is unknown, used or expired, and for a name that is taken; a token that met a taken
    name is not used up.
    """
    secret = new_secret(NODE_PREFIX)
    now = timezone.now()
    with transaction.atomic():
        token = _use_token(request.token, now)
        node = _create_node(request, hash_secret(secret))
        EnrolmentToken.objects.filter(pk=token.pk).update(node=node)
        if token.preapproved:
            _approve(node, token.created_by, f"Approved beforehand: {token} was made so.")
    return EnrolResponse(node_id=str(node.pk), secret=secret)


def approve_node(*, node: Node, actor: User) -> None:
    """Let a waiting node in. Its broker user is made on commit. Raises Refusal (403, 409)."""
    _check_administrator(actor)
    _check_waiting(node)
    with transaction.atomic():
        if not _approve(node, actor, f"Approved by {actor.username}."):
            raise _no_longer(node)


def refuse_node(*, node: Node, actor: User) -> None:
    """Turn a waiting node away, for good. Raises Refusal (403, 409)."""
    _check_administrator(actor)
    _check_waiting(node)
    with transaction.atomic():
        if not node.move_to(Node.State.REVOKED, f"Refused by {actor.username}.", actor=actor.username):
            raise _no_longer(node)
        record_act(actor=actor, act="refuse_node", target=_target(node))


def revoke_node(*, node: Node, actor: User) -> None:
    """Take a node out of the fleet, for good: its secret and its broker user open nothing from now on, and open connections to
    the broker are closed. Raises Refusal (403, 409)."""
    _check_administrator(actor)
    if node.is_terminal:
        raise _no_longer(node)
    with transaction.atomic():
        # Whatever happens to its state meanwhile, revoking wins: a heartbeat may move it between our look and our move.
        while not node.move_to(
            Node.State.REVOKED, f"Revoked by {actor.username}.", actor=actor.username, running_attempts=[]
        ):
            node.refresh_from_db()
            if node.is_terminal:
                raise _no_longer(node)
        record_act(actor=actor, act="revoke_node", target=_target(node))
        transaction.on_commit(partial(cut_access, node))
        transaction.on_commit(wake_jobs)


def authenticate_node(*, secret: str) -> Node | None:
    """Return the node that the secret belongs to, whatever its state; None for an unknown secret.

    The secret's hash is looked up, never compared byte by byte: the time it takes tells a guesser nothing.
    """
    return Node.objects.filter(secret_hash=hash_secret(secret)).first()


def _use_token(text: str, now: datetime) -> EnrolmentToken:
    token = EnrolmentToken.objects.filter(hash=hash_secret(text)).select_related("created_by").first()
    if token is None:
        raise Refusal(
            "This server does not know this enrolment token: ask its administrator for a new one.", status=403
        )
    if token.expires_at <= now:
        raise Refusal("This enrolment token has expired: ask the administrator for a new one.", status=403)
    if EnrolmentToken.objects.filter(pk=token.pk, used_at=None).update(used_at=now) != 1:
        # It was used before, or another enrolment got there first.
        raise Refusal(
            "This enrolment token was used already, and each adds one node: ask the administrator for a new one.",
            status=403,
        )
    return token


def _create_node(request: EnrolRequest, secret_hash: str) -> Node:
    if request.name in RESERVED_NAMES:
        raise Refusal(
            f"'{request.name}' is what the curves call the server itself: choose another name with --name.", status=403
        )
    try:
        with transaction.atomic():
            node = Node.objects.create(
                name=request.name,
                secret_hash=secret_hash,
                state=Node.State.PENDING,
                facts_json=request.facts.model_dump(mode="json"),
                slots=request.facts.slots,
            )
    except IntegrityError:
        raise Refusal(
            f"There is a node called '{request.name}' already: choose another name with --name.", status=403
        ) from None
    Transition.objects.create(
        thread=node.thread, subject=node.thread, new=node.state, reason=f"Enrolled from {request.facts.hostname}."
    )
    return node


def _approve(node: Node, actor: User | None, reason: str) -> bool:
    """Move a pending node on, inside the caller's transaction. False where another administrator got there first."""
    if not node.move_to(Node.State.OFFLINE, reason, actor=actor.username if actor else ""):
        return False
    record_act(actor=actor, act="approve_node", target=_target(node), reason=reason)
    transaction.on_commit(partial(grant_access, node))
    return True


def _check_administrator(actor: User) -> None:
    if not actor.is_staff:
        raise Refusal("Only a site administrator may change the fleet: ask one of them.", status=403)


def _check_waiting(node: Node) -> None:
    if node.state != Node.State.PENDING:
        raise _no_longer(node)


def _no_longer(node: Node) -> Refusal:
    return Refusal(
        f"{node.name} is not waiting for this any more: it is {Node.State(node.state).label.lower()}. Reload the page."
    )


def _target(node: Node) -> str:
    return f"node {node.name} ({node.pk})"

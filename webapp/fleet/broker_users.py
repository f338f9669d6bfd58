"""Each node's own broker user, confined to the node's own keys.

The server keeps no node's secret: the user is made from its SHA-256, which Redis and Valkey take as `#<hash>`. So users can
be made anew at any time, after a broker that lost them, or on another one.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import redis

from trainer.protocol import key_prefix
from webapp.core.broker import broker
from webapp.fleet.models import Node

logger = logging.getLogger(__name__)
USER_PREFIX = "node-"


def user_name(node_id: UUID | str) -> str:
    return f"{USER_PREFIX}{node_id}"


def acl_rules(node: Node) -> list[str]:
    """What the node's user may do. Measured: a Celery worker with remote control runs in it, and every other key is denied.

    The pattern `/0.celery.pidbox` stands there literally because kombu subscribes by pattern (PSUBSCRIBE), and a pattern is
    only allowed where the rules name it letter by letter. Kombu's scripts need `time`. What the last line takes away has no
    key in it, and so would reach beyond the node's corner: names of others' keys, and scripts and tracking that all share.
    """
    prefix = key_prefix(str(node.pk))
    return (
        f"reset on #{node.secret_hash} ~{prefix}* resetchannels &{prefix}* &{prefix}/0.celery.pidbox "
        "-@all +@read +@write +@connection +@pubsub +@transaction +@scripting -@dangerous +info +time "
        "-scan -randomkey -dbsize -pubsub -function -script|flush -client|tracking"
    ).split()


def grant_access(node: Node) -> None:
    """Make the node's user, or bring it up to date. A broker that is away is made up for by `sync_broker_users`."""
    try:
        _acl(broker(), "SETUSER", user_name(node.pk), *acl_rules(node))
        _save()
    except redis.RedisError as error:
        logger.warning("The broker user of %s could not be made now, and will be within 30 s: %s", node.name, error)


def cut_access(node: Node) -> None:
    """Remove the node's user and all that lies in its corner. The broker closes its connections with it, blocked ones too."""
    client = broker()
    try:
        _acl(client, "DELUSER", user_name(node.pk))
        _save()
        left = list(client.scan_iter(match=f"{key_prefix(str(node.pk))}*", count=1000))
        if left:
            client.unlink(*left)
    except redis.RedisError as error:
        logger.warning("The broker user of %s could not be removed now, and will be within 30 s: %s", node.name, error)


def sync_broker_users() -> None:
    """Make every approved node's user what it should be, and remove those of other nodes. Other users are not touched."""
    client = broker()
    before = _acl(client, "LIST")
    pipe = client.pipeline(transaction=False)
    for node in _approved():
        _acl(pipe, "SETUSER", user_name(node.pk), *acl_rules(node))
    pipe.execute()
    # The order matters. Users are listed before the nodes are read again, so a node approved meanwhile is in the second
    # reading; and a node revoked since the first, whose user was just made anew, is not, so it loses the user here.
    present = {name for name in _texts(_acl(client, "USERS")) if name.startswith(USER_PREFIX)}
    unknown = present - {user_name(node.pk) for node in _approved()}
    if unknown:
        _acl(client, "DELUSER", *sorted(unknown))
        logger.info("Removed %d broker users of nodes that are no longer in the fleet.", len(unknown))
    if _acl(client, "LIST") != before:
        _save()


def _approved() -> list[Node]:
    return list(Node.objects.filter(state__in=Node.APPROVED).only("id", "secret_hash"))


def _save() -> None:
    """Keep the users over a restart of the broker, where it has a file for them."""
    try:
        _acl(broker(), "SAVE")
    except redis.ResponseError as error:
        # Without an ACL file the users are made anew after a restart, by sync_broker_users.
        logger.debug("The broker keeps no ACL file: %s", error)


def _acl(client: redis.Redis, *words: str) -> Any:
    return client.execute_command("ACL", *words)  # type: ignore[no-untyped-call]


def _texts(names: list[bytes | str]) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else name for name in names]

"""Messages to nodes: one Celery task on the node's own queue, under the node's own key prefix."""

from __future__ import annotations

import logging
from functools import lru_cache, partial

from django.conf import settings
from django.db import transaction
from kombu import Connection, Exchange, Queue
from kombu.connection import ConnectionPool
from kombu.exceptions import OperationalError

from trainer.protocol import TASK_QUEUE, TASKS, Message, key_prefix
from webapp.celery import app
from webapp.fleet.models import Node

logger = logging.getLogger(__name__)

TASK_NAMES = {message: name for name, message in TASKS.items()}
# A queue object, not its name: a name would be added to the queues that this app's own workers consume.
_QUEUE = Queue(TASK_QUEUE, Exchange(TASK_QUEUE), routing_key=TASK_QUEUE)


def send_to_node(*, node: Node, message: Message) -> None:
    """Send `message` when the transaction commits; fire and forget.

    What is lost on the way (a broker that is away, a node that crashed after taking it) is sent again by whoever looks at
    the rows: `advance_attempt` is level-triggered.
    """
    transaction.on_commit(partial(_send, str(node.pk), node.name, message))


def _send(node_id: str, node_name: str, message: Message) -> None:
    try:
        with _connections(settings.BROKER_URL, settings.BROKER_CA_FILE, node_id).acquire(block=True) as connection:
            app.send_task(
                TASK_NAMES[type(message)],
                args=[message.model_dump(mode="json")],
                connection=connection,
                queue=_QUEUE,
                declare=[],  # the message goes straight to the node's list; the node declares its queue itself
                retry=False,
            )
    except (OperationalError, OSError) as error:
        logger.warning("%s was not sent to %s, and will be sent again: %s", type(message).__name__, node_name, error)


@lru_cache(maxsize=256)
def _connections(url: str, ca_file: str, node_id: str) -> ConnectionPool:
    """Open connections to one node's corner. Connecting takes longer than sending, so they are kept.

    A kombu connection has its prefix for good, so each node needs one; the cache bounds how many a server process holds.
    """
    tls = {"ssl_ca_certs": ca_file} if ca_file and url.startswith("rediss://") else None
    options = {
        "global_keyprefix": key_prefix(node_id),
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        # Kombu's default is to try for ever, and this is called from web requests.
        "max_retries": 1,
        "interval_start": 0,
    }
    return Connection(url, ssl=tls, transport_options=options).Pool(limit=8)

"""Messages to nodes: one Celery task on the node's own queue, under the node's own key prefix."""

from __future__ import annotations

import logging
from functools import partial

from django.db import transaction
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from trainer.message import Message
from trainer.protocol import TASK_QUEUE, TASKS, key_prefix
from webapp.celery import app
from webapp.core.broker import sending_connections
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
        with sending_connections(key_prefix(node_id)).acquire(block=True) as connection:
            app.send_task(
                TASK_NAMES[type(message)],
                args=[message.model_dump(mode="json")],
                connection=connection,
                queue=_QUEUE,  # type: ignore[arg-type]
                declare=[],  # the message goes straight to the node's list; the node declares its queue itself
                retry=False,
            )
    except (OperationalError, OSError) as error:
        logger.warning("%s was not sent to %s, and will be sent again: %s", type(message).__name__, node_name, error)

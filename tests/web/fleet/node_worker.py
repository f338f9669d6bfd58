"""A bare Celery worker in a node's corner, for test_send_to_node: what it is sent, it appends to its own telemetry stream."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery

from trainer.protocol import TASK_QUEUE, TASKS, TELEMETRY_STREAM, key_prefix

url = os.environ["NODE_URL"]
prefix = key_prefix(os.environ["NODE_ID"])
app = Celery("node", broker=url)
app.conf.update(
    broker_transport_options={"global_keyprefix": prefix},
    task_default_queue=TASK_QUEUE,
    task_ignore_result=True,
    accept_content=["json"],
    worker_send_task_events=False,
)
client = redis.Redis.from_url(url)


def echo(name: str):
    @app.task(name=name)
    def receive(message: dict[str, object]) -> None:
        entry: dict[Any, Any] = {"task": name, "message": json.dumps(message), "at": time.time()}
        client.xadd(prefix + TELEMETRY_STREAM, entry)

    return receive


for name in TASKS:
    echo(name)

"""A message leaves on commit and arrives at a real Celery worker inside the node's ACL."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from django.db import transaction

from tests.web.fleet.helpers import enrol
from trainer.protocol import StopAttempt
from webapp.celery import app
from webapp.core.conductor import ask_conductor
from webapp.fleet import services
from webapp.fleet.broker_users import user_name
from webapp.fleet.models import Node

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node_and_secret(admin, broker) -> tuple[Node, str]:
    return enrol(admin)


def waiting(broker, node: Node) -> list[dict[str, Any]]:
    """The messages in the node's queue, oldest first."""
    return [json.loads(raw) for raw in reversed(broker.lrange(f"n:{node.pk}:tasks", 0, -1))]


def test_it_lies_in_the_nodes_own_queue_as_json(node_and_secret, broker):
    node, _ = node_and_secret
    services.send_to_node(node=node, message=StopAttempt(attempt_id=7))
    (message,) = waiting(broker, node)
    assert message["headers"]["task"] == "trainer.stop_attempt"
    assert message["content-type"] == "application/json"
    assert broker.keys("*") == [f"n:{node.pk}:tasks".encode()]


def test_only_on_commit(node_and_secret, broker):
    node, _ = node_and_secret
    with transaction.atomic():
        services.send_to_node(node=node, message=StopAttempt(attempt_id=7))
        assert waiting(broker, node) == []
    assert len(waiting(broker, node)) == 1
    with transaction.atomic():
        services.send_to_node(node=node, message=StopAttempt(attempt_id=8))
        transaction.set_rollback(True)
    assert len(waiting(broker, node)) == 1


def test_a_broker_without_memory_is_a_warning_and_no_failure(node_and_secret, broker, caplog):
    """The rows say what is due, and whoever looks at them sends it again."""
    node, _ = node_and_secret
    most = broker.config_get("maxmemory")["maxmemory"]
    broker.config_set("maxmemory", 1)
    try:
        services.send_to_node(node=node, message=StopAttempt(attempt_id=7))
        ask_conductor("webapp.jobs.tasks.schedule_jobs")
    finally:
        broker.config_set("maxmemory", most)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert waiting(broker, node) == []
    services.send_to_node(node=node, message=StopAttempt(attempt_id=7))
    assert len(waiting(broker, node)) == 1


def test_our_own_workers_do_not_consume_the_nodes_queue(node_and_secret):
    node, _ = node_and_secret
    services.send_to_node(node=node, message=StopAttempt(attempt_id=7))
    assert "tasks" not in app.amqp.queues


def test_a_broker_that_is_away_costs_the_caller_nothing(node_and_secret, settings, caplog):
    node, _ = node_and_secret
    settings.BROKER_URL = "redis://127.0.0.1:1/0"
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), transaction.atomic():
        services.send_to_node(node=node, message=StopAttempt(attempt_id=7))
    assert time.monotonic() - started < 2
    assert "StopAttempt was not sent to node-1" in caplog.text


def test_a_broker_that_comes_back_is_used_again(node_and_secret, broker):
    node, _ = node_and_secret
    services.send_to_node(node=node, message=StopAttempt(attempt_id=1))
    broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    services.send_to_node(node=node, message=StopAttempt(attempt_id=2))
    assert len(waiting(broker, node)) == 2


def test_sending_is_quick(node_and_secret, broker):
    node, _ = node_and_secret
    services.send_to_node(node=node, message=StopAttempt(attempt_id=0))
    seconds = []
    for attempt_id in range(50):
        started = time.perf_counter()
        services.send_to_node(node=node, message=StopAttempt(attempt_id=attempt_id))
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[25] < 0.005


@pytest.fixture
def worker(node_and_secret, broker_url) -> Iterator[Node]:
    node, secret = node_and_secret
    url = f"redis://{user_name(node.pk)}:{secret}@{broker_url.rpartition('@')[2]}"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.web.fleet.node_worker",
        "worker",
        "-P",
        "threads",
        "-c",
        "1",
    ]
    # Gossip and mingle would talk to all workers under the prefix: there is one. Remote control stays on.
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "NODE_URL": url, "NODE_ID": str(node.pk)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield node
    process.terminate()
    process.wait(timeout=10)


def next_entry(broker, node: Node, after: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """What the worker appends next to the node's stream; it takes some seconds to start."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if entries := broker.xrange(f"n:{node.pk}:telemetry", min=b"(" + after, count=1):
            return cast("tuple[bytes, dict[bytes, bytes]]", entries[0])
        time.sleep(0.01)
    raise AssertionError("The worker took nothing for 20 s.")


def test_a_worker_inside_the_acl_gets_it(worker, broker):
    services.send_to_node(node=worker, message=StopAttempt(attempt_id=41))
    first, fields = next_entry(broker, worker, b"0-0")
    assert fields[b"task"] == b"trainer.stop_attempt"
    assert json.loads(fields[b"message"]) == {"attempt_id": 41}
    # Warm, it takes milliseconds; the bound only tells it from a poll.
    sent_at = time.time()
    services.send_to_node(node=worker, message=StopAttempt(attempt_id=42))
    _, fields = next_entry(broker, worker, first)
    assert float(fields[b"at"]) - sent_at < 0.5

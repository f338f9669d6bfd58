"""A running job of the owner's team on one node, and packs of points as a node would send them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import redis

from trainer.protocol import Logs, Points, SeriesHead
from webapp.core.live import job_group
from webapp.fleet.models import Node
from webapp.jobs.models import Assignment, Attempt, Job

SPEC = {"name": "Digits", "mode": "federated", "model": {"name": "linear"}, "data": {"source": "digits"}}
BASE_MS = 1_790_000_000_000


def make_node(name: str) -> Node:
    return Node.objects.create(name=name, state=Node.State.ONLINE, secret_hash=uuid.uuid4().hex * 2, boot_id="b1")


def make_attempt(job: Job, node: Node, number: int = 1, state: str = "running") -> Attempt:
    attempt = Attempt.objects.create(job=job, number=number, state=state)
    Assignment.objects.create(attempt=attempt, node=node, index=0, slots=1, state="active")
    return attempt


def make_points(
    attempt_id: int,
    curves: dict[str, list[tuple[int, float]]],
    *,
    source: str = "node-1",
    base_ms: int = BASE_MS,
    dropped: int = 0,
) -> tuple[Points, bytes]:
    """`curves` holds (step, value) pairs by metric name; the point of step s was logged at base_ms + s."""
    heads = [SeriesHead(name=name, source=source, count=len(points)) for name, points in curves.items()]
    data = b""
    for points in curves.values():
        steps = np.array([step for step, _ in points], "<u4")
        data += steps.tobytes() + steps.tobytes() + np.array([value for _, value in points], "<f8").tobytes()
    return Points(attempt_id=attempt_id, base_time_ms=base_ms, series=heads, dropped=dropped), data


def make_logs(attempt_id: int, *texts: str, source: str = "node-1", level: str = "info", dropped: int = 0) -> Logs:
    lines = [{"time_ms": BASE_MS, "level": level, "text": text} for text in texts]
    return Logs.model_validate({"attempt_id": attempt_id, "source": source, "lines": lines, "dropped": dropped})


@pytest.fixture
def node(db) -> Node:
    return make_node("node-1")


@pytest.fixture
def job(owner, team) -> Job:
    return Job.objects.create(team=team, owner=owner, name="Digits", mode="federated", state="running", spec_json=SPEC)


@pytest.fixture
def attempt(job, node) -> Attempt:
    return make_attempt(job, node)


class Listener:
    """Hears what a page of a job would hear."""

    def __init__(self, client: redis.Redis, job_id: int) -> None:
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(f"live__group__{job_group(job_id)}")
        self._pubsub.get_message(timeout=1)  # the confirmation

    def frames(self, num: int) -> list[dict[str, Any]]:
        """Return the next `num` frames; fails when they do not come."""
        frames: list[dict[str, Any]] = []
        deadline = time.monotonic() + 5
        while len(frames) < num:
            assert time.monotonic() < deadline, f"{len(frames)} of {num} frames came"
            if message := self._pubsub.get_message(timeout=0.1):
                frames.append(json.loads(msgpack.unpackb(message["data"])["text"]))
        return frames

    def assert_silent(self) -> None:
        assert self._pubsub.get_message(timeout=0.05) is None


@pytest.fixture
def listener(broker, job) -> Iterator[Listener]:
    listener = Listener(broker, job.pk)
    yield listener
    listener._pubsub.close()

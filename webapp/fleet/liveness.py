"""Which nodes are there: heartbeats in, and a sweep for those that went silent."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import redis
from django.db import transaction
from django.utils import timezone

from trainer.protocol import OFFLINE_AFTER_SECONDS, Heartbeat
from webapp.core.broker import broker
from webapp.core.conductor import ask_conductor
from webapp.fleet.models import Node

INGEST_LEASE_KEY = "ingest:alive"
"""Broker key that ingest renews each second, after a tick that committed: {"since": unix time, "at": unix time}."""
INGEST_LEASE_SECONDS = 5.0
SWEEP_SECONDS = 2.0
"""Pause between two sweeps; the beat schedule in webapp/celery.py has the same number."""


def record_heartbeat(*, node_id: UUID | str, heartbeat: Heartbeat) -> None:
    """Note a sign of life: facts, load and running attempts. One UPDATE, unless the node's state or boot changes.

    A node that is pending or revoked has no say: nothing changes.
    """
    seen: dict[str, Any] = {
        "facts_json": heartbeat.facts.model_dump(mode="json"),
        "slots": heartbeat.facts.slots,
        "cpu_percent": heartbeat.cpu_percent,
        "memory_used_bytes": heartbeat.memory_used_bytes,
        "running_attempts": heartbeat.attempts,
        "boot_id": heartbeat.boot_id,
        "last_seen_at": timezone.now(),  # the server's clock; a node's may be wrong by hours
    }
    steady = Node.objects.filter(pk=node_id, state=Node.State.ONLINE, boot_id=heartbeat.boot_id)
    if not heartbeat.going_away and steady.update(**seen):
        return
    node = Node.objects.filter(pk=node_id, state__in=Node.APPROVED).first()
    if node is None:
        return
    if heartbeat.going_away:
        changed = node.state == Node.State.ONLINE and node.move_to(
            Node.State.OFFLINE, f"{node.name} was stopped.", **{**seen, "running_attempts": []}
        )
    elif node.state == Node.State.OFFLINE:
        changed = node.move_to(Node.State.ONLINE, f"{node.name} answers.", **seen)
    else:  # the agent was started anew before anyone noticed that it had gone
        changed = bool(Node.objects.filter(pk=node_id, state=Node.State.ONLINE).update(**seen))
    if changed:
        transaction.on_commit(wake_jobs)


def sweep_nodes() -> None:
    """Move the nodes that have been silent for too long to offline.

    A sweep comes every SWEEP_SECONDS, so it judges that much earlier: a node is offline at most OFFLINE_AFTER_SECONDS after
    its last sign.
    """
    if not _heartbeats_are_heard():
        return
    now = timezone.now()
    cutoff = now - timedelta(seconds=OFFLINE_AFTER_SECONDS - SWEEP_SECONDS)
    silent = Node.objects.filter(state=Node.State.ONLINE, last_seen_at__lt=cutoff)
    for pk in silent.values_list("pk", flat=True):
        with transaction.atomic():
            # Asked again under the row's lock: a heartbeat may have come in since the list was read.
            node = silent.select_for_update().filter(pk=pk).first()
            if node is None or node.last_seen_at is None:
                continue
            seconds = (now - node.last_seen_at).total_seconds()
            reason = f"{node.name} stopped answering: its last sign came {seconds:.0f} s ago."
            if node.move_to(Node.State.OFFLINE, reason):
                transaction.on_commit(wake_jobs)


def _heartbeats_are_heard() -> bool:
    """Whether silence means anything: ingest has been draining the streams for as long as a node may be silent.

    While ingest or the broker was away, and just after, every node looks silent and none of them need be. Nobody is judged
    by what nobody listened to.
    """
    try:
        lease = json.loads(broker().get(INGEST_LEASE_KEY) or "{}")
    except redis.RedisError:
        return False
    now = time.time()
    return bool(
        now - lease.get("at", 0) <= INGEST_LEASE_SECONDS and now - lease.get("since", now) >= OFFLINE_AFTER_SECONDS
    )


def wake_jobs() -> None:
    """Let the jobs look at the fleet now. By name: the fleet knows nothing of jobs."""
    ask_conductor("webapp.jobs.tasks.schedule_jobs")
    ask_conductor("webapp.jobs.tasks.sweep_jobs")

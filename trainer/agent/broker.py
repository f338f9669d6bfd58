"""The node's own corner of the broker: a Redis client for telemetry, and a Celery worker for tasks.

Everything lies under `n:<node id>:`, and the broker's user `node-<id>` may touch nothing else. No pub/sub right is
needed: remote control, gossip, mingle, events and Celery's heartbeats are off.
"""

from __future__ import annotations

import os
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from trainer.agent.home import Identity
from trainer.protocol import TASK_QUEUE, key_prefix

SOCKET_TIMEOUT_SECONDS = 10.0
"""Above the one second that a blocking pop takes, and short enough to notice a broker that is gone."""


def broker_url_with_credentials(broker_url: str, identity: Identity) -> str:
    """Return the broker's URL with this node's user and secret. Never log it."""
    parts = urlsplit(broker_url)
    host = parts.netloc.rpartition("@")[2]
    user = f"node-{identity.node_id}:{quote(identity.secret, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{user}@{host}"))


def connect(url: str) -> redis.Redis:
    """Return a client that fails fast: its callers know what may be sent twice, a hidden retry does not."""
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=5,
        socket_keepalive=True,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 0),
        **_tls(url),
    )


def make_celery_app(url: str, identity: Identity, concurrency: int) -> Celery:
    """Return the Celery application of this node's worker. It waits for a broker that is away, for ever."""
    app = Celery("trainmaster-node", set_as_current=False)
    app.conf.update(
        broker_url=url,
        broker_use_ssl=_tls(url) or None,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport_options={
            "global_keyprefix": key_prefix(identity.node_id),
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Tasks are acknowledged as they start, so that this only matters for a worker that was killed in between.
            "visibility_timeout": 3600,
        },
        task_default_queue=TASK_QUEUE,
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_pool="threads",
        worker_concurrency=concurrency,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def _tls(url: str) -> dict[str, str]:
    """How to check the broker's certificate. Said in full: kombu checks nothing of a rediss:// URL by itself."""
    if not url.startswith("rediss://"):
        return {}
    ca_file = os.environ.get("TRAINMASTER_CA_FILE")
    return {"ssl_cert_reqs": "required"} | ({"ssl_ca_certs": ca_file} if ca_file else {})

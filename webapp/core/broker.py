"""The server's own connections to the broker, a few for each process."""

from __future__ import annotations

from functools import lru_cache

import redis
from django.conf import settings
from kombu import Connection
from kombu.connection import ConnectionPool


def broker() -> redis.Redis:
    """Return the client for BROKER_URL. It is safe to share between threads, and connects at the first command."""
    return _client(settings.BROKER_URL, settings.BROKER_CA_FILE)


def sending_connections(key_prefix: str = "") -> ConnectionPool:
    """Return the pool of connections over which Celery tasks are sent; those to one node have its `key_prefix`.

    They are not the Celery app's own: that one tries for 6 s (measured) before it gives up on a broker that is away, which is
    right for a worker and wrong for a web request.
    """
    return _connections(settings.BROKER_URL, settings.BROKER_CA_FILE, key_prefix)


@lru_cache(maxsize=4)
def _client(url: str, ca_file: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, socket_timeout=5, socket_connect_timeout=2, health_check_interval=10, **tls_options(url, ca_file)
    )


@lru_cache(maxsize=256)
def _connections(url: str, ca_file: str, key_prefix: str) -> ConnectionPool:
    """Connecting takes longer than sending, so connections are kept. Each has its prefix for good, so each node needs its
    own; the cache bounds how many a process holds."""
    options = {
        "global_keyprefix": key_prefix,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        # Kombu's default is to try for ever.
        "max_retries": 1,
        "interval_start": 0,
    }
    return Connection(url, ssl=tls_options(url, ca_file) or False, transport_options=options).Pool(limit=8)


def tls_options(url: str, ca_file: str) -> dict[str, str]:
    """Return what redis-py and kombu need for rediss://, nothing otherwise. Kombu by itself would check no certificate."""
    if not url.startswith("rediss://"):
        return {}
    return {"ssl_cert_reqs": "required", **({"ssl_ca_certs": ca_file} if ca_file else {})}

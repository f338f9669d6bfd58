"""The server's own connection to the broker, one pool for each process."""

from __future__ import annotations

from functools import lru_cache

import redis
from django.conf import settings


@lru_cache(maxsize=4)
def _client(url: str, ca_file: str) -> redis.Redis:
    tls = {"ssl_ca_certs": ca_file} if ca_file and url.startswith("rediss://") else {}
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2, health_check_interval=10, **tls)


def broker() -> redis.Redis:
    """Return the client for BROKER_URL. It is safe to share between threads, and connects at the first command."""
    return _client(settings.BROKER_URL, settings.BROKER_CA_FILE)

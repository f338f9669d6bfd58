"""The blob server as nodes meet it: the product's ASGI application behind a real uvicorn, and clients with secrets."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from tests.ports import free_port
from tests.web.fleet.helpers import enrol
from webapp.fleet.models import Node


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def blob_dir(settings, tmp_path: Path) -> Path:
    folder = tmp_path / "blobs"
    folder.mkdir()
    settings.BLOB_DIR = folder
    return folder


@pytest.fixture
def server_url(blob_dir, transactional_db) -> Iterator[str]:
    """uvicorn in a thread of this process, so that it sees the test's database and settings."""
    from webapp.asgi import application

    config = uvicorn.Config(application, port=free_port(), lifespan="off", log_level="warning", ws="websockets-sansio")
    server = uvicorn.Server(config)

    async def serve() -> None:
        await server.serve()
        await asyncio.sleep(0.05)  # connections that were cut in mid-transfer leave the loop

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{config.port}/node/v1/"
    server.should_exit = True
    thread.join()


NodeClient = Callable[..., tuple[Node, httpx.Client]]


@pytest.fixture
def join(server_url, admin, broker) -> Iterator[NodeClient]:
    """Makes nodes: `join("node-1")` returns the node and a client that carries its secret."""
    clients = []

    def _join(name: str, *, preapproved: bool = True) -> tuple[Node, httpx.Client]:
        node, secret = enrol(admin, name, preapproved=preapproved)
        client = httpx.Client(base_url=server_url, headers={"Authorization": f"Bearer {secret}"}, trust_env=False)
        clients.append(client)
        return node, client

    yield _join
    for client in clients:
        client.close()

"""The web process as a whole: what goes past Django, and who may open a socket."""

from __future__ import annotations

import httpx
import pytest
from asgiref.testing import ApplicationCommunicator

from webapp.asgi import application


@pytest.fixture
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/node/v1/me", 401), (f"/node/v1/blobs/{'0' * 64}", 401), ("/nowhere", 404)],
)
async def test_each_address_reaches_its_part(client, broker, path, status):
    async with client:
        assert (await client.get(path)).status_code == status


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("origin", "code"),
    # 4401 is the consumer's own answer to nobody: the socket came through to it. The door closes without a code.
    [(b"https://evil.example.org", None), (b"http://127.0.0.1", 4401), (None, 4401)],
    ids=["a foreign page", "our page", "a command line"],
)
async def test_foreign_pages_open_no_socket(broker, origin, code):
    scope = {"type": "websocket", "path": "/ws/jobs/", "query_string": b"", "subprotocols": []}
    headers = [(b"origin", origin)] if origin else []
    socket = ApplicationCommunicator(application, {**scope, "headers": headers})
    await socket.send_input({"type": "websocket.connect"})
    answer = await socket.receive_output(5)
    if answer["type"] == "websocket.accept":  # the consumer accepts first, so that the browser may see the code
        answer = await socket.receive_output(5)
    assert answer["type"] == "websocket.close"
    assert answer.get("code") == code
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait(5)

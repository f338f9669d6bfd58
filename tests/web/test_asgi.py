"""The web process as a whole: what goes past Django, and who may open a socket."""

from __future__ import annotations

import httpx
import pytest

from tests.web.telemetry.websocket import Websocket
from webapp.asgi import application, make_application


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


async def test_static_files_go_past_django(tmp_path, monkeypatch):
    """Named by their content, they are kept for ever; nothing outside the folder is served."""
    (tmp_path / "css").mkdir()
    (tmp_path / "css" / "base.0123456789ab.css").write_text("a{}")
    # The files are listed once, at start: a server of its own.
    monkeypatch.setattr("django.conf.settings.STATIC_ROOT", tmp_path)
    transport = httpx.ASGITransport(make_application())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/static/css/base.0123456789ab.css")
        assert (answer.status_code, answer.text) == (200, "a{}")
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/static/../webapp/settings.py")).status_code == 404


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("origin", "comes_through"),
    [(b"https://evil.example.org", False), (b"http://127.0.0.1", True), (None, True)],
    ids=["a foreign page", "our page", "a command line"],
)
async def test_foreign_pages_open_no_socket(broker, origin, comes_through):
    socket = Websocket("/ws/jobs/", [(b"origin", origin)] if origin else [])
    assert await socket.connect() == comes_through
    if comes_through:
        assert await socket.close_code() == 4401  # the consumer's own answer to nobody
    await socket.leave()

"""Blobs in: whole, in parts, again, wrong, too large, and at once."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.web.blobs.conftest import digest_of
from webapp.blobs import services, uploads
from webapp.fleet import services as fleet

DATA = bytes(range(256)) * 12_000  # 3 MB: three pieces
DIGEST = digest_of(DATA)
URL = f"blobs/{DIGEST}"


def put_part(client: httpx.Client, first: int, last: int, *, url: str = URL, data: bytes = DATA) -> httpx.Response:
    headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return client.put(url, content=data[first : last + 1], headers=headers)


def leftovers(blob_dir) -> list[Path]:
    return [path for path in (blob_dir / "incoming").rglob("*") if path.is_file()]


def test_whole(join, blob_dir):
    _, client = join("node-1")
    assert client.head(URL).status_code == 404
    assert client.put(URL, content=DATA).status_code == 201
    assert services.path_of(DIGEST).read_bytes() == DATA
    assert leftovers(blob_dir) == []
    there = client.head(URL)
    assert (there.status_code, there.headers["content-length"]) == (200, str(len(DATA)))
    assert client.put(URL, content=DATA).status_code == 200


def test_nothing_at_all_is_a_blob_too(join):
    _, client = join("node-1")
    assert client.put(f"blobs/{digest_of(b'')}", content=b"", headers={"Content-Length": "0"}).status_code == 201
    assert services.ref_of(digest_of(b"")).size_bytes == 0


def test_in_parts(join):
    _, client = join("node-1")
    answer = put_part(client, 0, 999)
    assert (answer.status_code, answer.headers["upload-offset"]) == (202, "1000")
    missing = client.head(URL)
    assert (missing.status_code, missing.headers["upload-offset"]) == (404, "1000")
    assert put_part(client, 1000, 1_999_999).status_code == 202
    assert put_part(client, 2_000_000, len(DATA) - 1).status_code == 201
    assert services.path_of(DIGEST).read_bytes() == DATA


def test_a_gap_or_an_overlap_is_told_where_to_go_on(join):
    _, client = join("node-1")
    put_part(client, 0, 999)
    for first in (500, 2000):
        answer = put_part(client, first, 2999)
        assert (answer.status_code, answer.headers["upload-offset"]) == (409, "1000")
        assert "1000 bytes are here" in answer.json()["detail"]


def test_starting_again_is_possible(join):
    _, client = join("node-1")
    put_part(client, 0, 1_999_999)
    assert client.put(URL, content=DATA).status_code == 201


def test_a_broken_connection_loses_nothing_that_arrived(join, server_url):
    _, client = join("node-1")
    head = f"PUT /node/v1/{URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {client.headers['Authorization']}\r\n"
    address = httpx.URL(server_url)
    with socket.create_connection((address.host, address.port)) as wire:
        wire.sendall(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:1_500_000])
        while int(client.head(URL).headers["upload-offset"]) < services.PIECE_BYTES:
            pass  # the server is writing
    while (offset := int(client.head(URL).headers["upload-offset"])) < 1_500_000:
        pass  # it has not noticed yet that the peer is gone
    assert offset == 1_500_000
    while (answer := put_part(client, offset, len(DATA) - 1)).status_code == 409:
        pass  # the lock goes with the connection
    assert answer.status_code == 201
    assert services.path_of(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize("parts", [1, 2])
def test_wrong_bytes_are_thrown_away(join, blob_dir, parts):
    _, client = join("node-1")
    wrong = b"x" + DATA[1:]
    if parts == 2:
        assert put_part(client, 0, 999, data=wrong).status_code == 202
    answer = put_part(client, 1000 if parts == 2 else 0, len(wrong) - 1, data=wrong)
    assert answer.status_code == 422
    assert "not what their digest says" in answer.json()["detail"]
    assert not services.exists(DIGEST)
    assert leftovers(blob_dir) == []


def test_too_large_is_said_before_a_byte_is_kept(join, settings, blob_dir):
    settings.MAX_BLOB_BYTES = 1_000_000
    _, client = join("node-1")
    for answer in (client.put(URL, content=DATA), put_part(client, 0, 99)):
        assert answer.status_code == 413
        assert "3,072,000 bytes, and the server takes at most 1,000,000" in answer.json()["detail"]
    assert leftovers(blob_dir) == []


def test_a_full_disk(join):
    """/dev/full is a disk that has no room left."""
    node, client = join("node-1")
    (services.incoming_dir(str(node.pk)) / DIGEST).symlink_to("/dev/full")
    answer = client.put(URL, content=DATA)
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["detail"]
    assert not services.exists(DIGEST)


def test_a_disk_without_room_for_one_more_file(join, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads, "incoming_dir", refuse)
    _, client = join("node-1")
    answer = client.put(URL, content=DATA)
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["detail"]


def test_more_than_the_disk_could_ever_hold(join, settings, blob_dir):
    settings.MAX_BLOB_BYTES = 10**18
    _, client = join("node-1")
    answer = client.put(URL, content=b"x", headers={"Content-Range": f"bytes 0-0/{10**17}"})
    assert answer.status_code == 507
    assert leftovers(blob_dir) == []


def test_without_a_length(join):
    _, client = join("node-1")

    def body() -> Iterator[bytes]:
        yield DATA

    assert client.put(URL, content=body()).status_code == 411


@pytest.mark.parametrize("text", ["bytes 0-5/10", "bytes 5-4/10", "0-9/10", "bytes 0-9/9", "bytes */10"])
def test_a_range_that_says_nonsense(join, text):
    _, client = join("node-1")
    answer = client.put(URL, content=b"0123456789", headers={"Content-Range": text})
    assert answer.status_code == 400
    assert "Content-Range" in answer.json()["detail"]


def test_many_nodes_at_once_do_no_harm(join, blob_dir):
    clients = [join(f"node-{number}")[1] for number in range(4)]
    codes: list[int] = []
    threads = [threading.Thread(target=lambda c=c: codes.append(c.put(URL, content=DATA).status_code)) for c in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 201}
    assert services.path_of(DIGEST).read_bytes() == DATA
    assert leftovers(blob_dir) == []


def test_one_node_twice_at_once_waits_its_turn(join, server_url):
    _, client = join("node-1")
    head = f"PUT /node/v1/{URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {client.headers['Authorization']}\r\n"
    address = httpx.URL(server_url)
    with socket.create_connection((address.host, address.port)) as wire:
        wire.sendall(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:1_500_000])
        while int(client.head(URL).headers["upload-offset"]) < services.PIECE_BYTES:
            pass
        answer = client.put(URL, content=DATA)
        assert answer.status_code == 409
        assert "under way" in answer.json()["detail"]
        wire.sendall(DATA[1_500_000:])
        assert wire.recv(100).startswith(b"HTTP/1.1 201")


def test_a_node_that_is_revoked_in_mid_upload_is_cut_off(join, server_url, admin, monkeypatch):
    monkeypatch.setattr("webapp.blobs.asgi.TRUST_SECONDS", 0.0)
    node, client = join("node-1")
    head = f"PUT /node/v1/{URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {client.headers['Authorization']}\r\n"
    address = httpx.URL(server_url)
    with socket.create_connection((address.host, address.port)) as wire:
        wire.sendall(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:1_500_000])
        while int(client.head(URL).headers["upload-offset"]) < services.PIECE_BYTES:
            pass
        fleet.revoke_node(node=node, actor=admin)
        wire.sendall(DATA[1_500_000:])
        assert wire.recv(100).startswith(b"HTTP/1.1 401")
    assert not services.exists(DIGEST)

"""Blobs of a node on the server's own machine: taken by their name from the node's own folder, and from nowhere else."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from tests.web.blobs.conftest import digest_of
from webapp.blobs import services
from webapp.fleet import services as fleet

DATA = bytes(range(256)) * 4000


@pytest.fixture
def left(blob_dir: Path):
    """Leave a file in a node's folder: `left(node)` returns its name."""

    def leave(node, data: bytes = DATA) -> str:
        name = uuid.uuid4().hex
        (services.incoming_dir(str(node.pk)) / name).write_bytes(data)
        return name

    return leave


def test_taken_without_a_copy(join, left, blob_dir):
    node, client = join("node-1")
    name = left(node)
    inode = (blob_dir / "incoming" / str(node.pk) / name).stat().st_ino
    answer = client.post(f"blobs/{name}")
    assert (answer.status_code, answer.headers["blob-digest"]) == (201, digest_of(DATA))
    assert services.path_of(digest_of(DATA)).stat().st_ino == inode
    assert list((blob_dir / "incoming" / str(node.pk)).iterdir()) == []
    assert client.post(f"blobs/{name}").status_code == 404


def test_another_nodes_file_is_out_of_reach(join, left, blob_dir):
    mine, _ = join("node-1")
    _, other = join("node-2")
    name = left(mine)
    assert other.post(f"blobs/{name}").status_code == 404
    assert (blob_dir / "incoming" / str(mine.pk) / name).exists()


def test_a_link_is_not_followed(join, blob_dir, tmp_path):
    node, client = join("node-1")
    secret = tmp_path / "secret"
    secret.write_text("the server's own")
    name = uuid.uuid4().hex
    (services.incoming_dir(str(node.pk)) / name).symlink_to(secret)
    assert client.post(f"blobs/{name}").status_code == 404
    assert not services.exists(digest_of(secret.read_bytes()))


@pytest.mark.parametrize("name", ["a" * 31, "A" * 32, "..%2F..%2Fsecrets", "a" * 64])
def test_only_names_are_taken(join, name):
    _, client = join("node-1")
    assert client.post(f"blobs/{name}").status_code in (400, 404, 405)


def test_what_is_too_large_is_not_kept(join, left, settings, blob_dir):
    node, client = join("node-1")
    settings.MAX_BLOB_BYTES = len(DATA) - 1
    name = left(node)
    answer = client.post(f"blobs/{name}")
    assert answer.status_code == 413
    assert "TRAINMASTER_MAX_BLOB_BYTES" in answer.json()["detail"]
    assert list((blob_dir / "incoming" / str(node.pk)).iterdir()) == []


def test_a_revoked_node_hands_over_nothing(join, left, admin):
    node, client = join("node-1")
    name = left(node)
    fleet.revoke_node(node=node, actor=admin)
    assert client.post(f"blobs/{name}").status_code == 401


def test_an_empty_body_of_a_link_to_a_blob_that_is_there(join, left):
    node, client = join("node-1")
    services.save_bytes(DATA)
    name = left(node)
    assert client.post(f"blobs/{name}").headers["blob-digest"] == digest_of(DATA)
    assert os.path.getsize(services.path_of(digest_of(DATA))) == len(DATA)

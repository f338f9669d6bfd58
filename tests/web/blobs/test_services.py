"""Blobs as files."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.web.blobs.conftest import digest_of
from webapp.blobs import services

DATA = b"weights" * 1000


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_bytes_lie_under_their_digest(blob_dir):
    ref = services.save_bytes(DATA)
    digest = digest_of(DATA)
    assert (ref.digest, ref.size_bytes) == (digest, len(DATA))
    assert ref.path == str(blob_dir / digest[:2] / digest[2:4] / digest)
    assert services.path_of(digest).read_bytes() == DATA
    assert services.ref_of(digest) == ref


def test_a_file_is_taken_not_copied(blob_dir):
    source = services.incoming_dir() / "model.safetensors"
    source.write_bytes(DATA * 300)
    inode = source.stat().st_ino
    ref = services.adopt(source)
    assert ref.digest == digest_of(DATA * 300)
    assert services.path_of(ref.digest).stat().st_ino == inode
    assert not source.exists()


def test_a_file_that_is_kept_already_goes(blob_dir):
    ref = services.save_bytes(DATA)
    again = services.incoming_dir() / "again"
    again.write_bytes(DATA)
    assert services.adopt(again) == ref
    assert len(files(blob_dir)) == 1


def test_the_same_bytes_are_kept_once(blob_dir):
    assert services.save_bytes(DATA) == services.save_bytes(DATA)
    assert len(files(blob_dir)) == 1


def test_many_at_once_do_no_harm(blob_dir):
    threads = [threading.Thread(target=services.save_bytes, args=(DATA,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert services.path_of(digest_of(DATA)).read_bytes() == DATA
    assert len(files(blob_dir)) == 1


def test_delete(blob_dir):
    ref = services.save_bytes(DATA)
    with services.path_of(ref.digest).open("rb") as reader:
        services.delete(ref.digest)
        assert reader.read() == DATA
    assert not services.exists(ref.digest)
    services.delete(ref.digest)


def test_what_is_not_there(blob_dir):
    assert not services.exists("0" * 64)
    with pytest.raises(FileNotFoundError):
        services.ref_of("0" * 64)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_digests_are_names(name):
    with pytest.raises(ValueError, match="no SHA-256 digest"):
        services.path_of(name)


def test_uploads_that_were_given_up_are_swept(blob_dir):
    folder = services.incoming_dir("some-node")
    (folder / "old").write_bytes(b"x")
    (folder / "new").write_bytes(b"x")
    long_ago = time.time() - services.KEEP_INCOMING_SECONDS - 1
    os.utime(folder / "old", (long_ago, long_ago))
    kept = services.save_bytes(DATA)
    os.utime(services.path_of(kept.digest), (long_ago, long_ago))
    assert services.sweep_incoming() == 1
    assert files(folder) == ["new"]
    assert services.exists(kept.digest)

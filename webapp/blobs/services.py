"""Blobs: content-addressed files. A blob's name is the SHA-256 of its bytes, so it is never changed, only made or deleted.

A blob appears by one rename, after its bytes are on the disk: a reader sees all of it or nothing, and a crash at any moment
leaves at most a file in `incoming/`, which `sweep_incoming` removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from trainer.message import BlobRef

PIECE_BYTES = 1 << 20
"""How much of a blob is in memory at a time."""
KEEP_INCOMING_SECONDS = 24 * 3600
"""An upload that got no byte for this long was given up."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def path_of(digest: str) -> Path:
    """Where the blob `digest` lies, whether it is there or not. Raises ValueError for what is no SHA-256 in hexadecimal."""
    if not is_digest(digest):
        raise ValueError(f"{digest!r} is no SHA-256 digest.")
    return Path(settings.BLOB_DIR) / digest[:2] / digest[2:4] / digest


def incoming_dir(*parts: str) -> Path:
    """A folder for unfinished files, on the file system of the blobs, so that a rename finishes them."""
    folder = Path(settings.BLOB_DIR, "incoming", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def exists(digest: str) -> bool:
    return path_of(digest).is_file()


def ref_of(digest: str) -> BlobRef:
    """Return the reference that tells a node where the blob is. Raises FileNotFoundError when it is not there."""
    path = path_of(digest)
    return BlobRef(digest=digest, size_bytes=path.stat().st_size, path=str(path))


def save_bytes(data: bytes) -> BlobRef:
    """Keep `data` as a blob, durably."""
    unfinished = incoming_dir() / uuid.uuid4().hex
    try:
        unfinished.write_bytes(data)
        return adopt(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def adopt(path: Path) -> BlobRef:
    """Make the finished file at `path`, on the file system of the blobs, a blob, durably: renamed, not copied."""
    with path.open("rb") as file:
        # The disk writes while the processor hashes: of 100 MB each takes a tenth of a second.
        syncing = threading.Thread(target=os.fsync, args=(file.fileno(),))
        syncing.start()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        syncing.join()
    if exists(digest):
        path.unlink()
    else:
        place(path, digest)
    return ref_of(digest)


def delete(digest: str) -> None:
    """Remove the blob. Harmless when it is gone; who reads it now reads it to the end."""
    path_of(digest).unlink(missing_ok=True)


def place(unfinished: Path, digest: str) -> None:
    """Give a complete file its name as a blob. Its bytes must be synced and must have this digest."""
    target = path_of(digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Two that save the same bytes at once: the second rename puts equal bytes over equal bytes.
    unfinished.replace(target)
    _sync_folder(target.parent)


def sweep_incoming() -> int:
    """Remove unfinished files that nobody has written to for a day. Returns how many."""
    before = time.time() - KEEP_INCOMING_SECONDS
    removed = 0
    for path in _files_under(Path(settings.BLOB_DIR, "incoming")):
        with contextlib.suppress(FileNotFoundError):  # it was finished just now
            if path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed


def stored_before(timestamp: float) -> Iterator[str]:
    """Yield the digests of the blobs that were last written before a Unix time."""
    for path in Path(settings.BLOB_DIR).glob("??/??/*"):
        with contextlib.suppress(FileNotFoundError):  # it was deleted just now
            if is_digest(path.name) and path.stat().st_mtime < timestamp:
                yield path.name


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a synced file whose name is lost is lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files_under(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())

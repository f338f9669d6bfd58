"""One node's unfinished copy of one blob: locked while a request writes to it, kept between requests.

Blocking file work; the ASGI application calls it from threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

from django.conf import settings

from webapp.blobs.services import PIECE_BYTES, incoming_dir, place


class Busy(Exception):
    """Another request is writing to this upload."""


def offset_of(owner: str, digest: str) -> int:
    """Return how many bytes of the upload are here; 0 when there is none."""
    try:
        return Path(settings.BLOB_DIR, "incoming", owner, digest).stat().st_size
    except FileNotFoundError:
        return 0


class Upload:
    """The open, locked file. Raises Busy when another request holds it, OSError when the disk refuses.

    The lock is what keeps a finished blob from being written to: whoever has the file open holds the lock, so nobody else
    can still have a handle on it when `finish` renames it into place.
    """

    def __init__(self, owner: str, digest: str) -> None:
        self.path = incoming_dir(owner) / digest
        self.digest = digest
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_same(self._file.fileno(), self.path):  # finished between our open and our lock
                raise BlockingIOError
        except BlockingIOError:
            self._file.close()
            raise Busy from None
        self.offset = os.fstat(self._file.fileno()).st_size
        self._hasher = hashlib.sha256()
        self._hashed_from_start = False

    def start_at(self, offset: int) -> None:
        """Go on at `offset`: the end of what is here, or 0 to start again."""
        assert offset in (0, self.offset)
        if offset < self.offset:
            self._file.truncate(offset)
        self._file.seek(offset)
        self.offset = offset
        self._hashed_from_start = offset == 0

    def write(self, piece: bytes) -> None:
        """Append. What a full disk let through of a failed piece is cut off again, so that `offset` stays true."""
        try:
            self._file.write(piece)
            self._file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self.offset)
            raise
        self.offset += len(piece)
        if self._hashed_from_start:
            self._hasher.update(piece)

    def finish(self) -> bool:
        """Verify the bytes and place the blob. Return False, and remove the upload, when they are not what the digest says."""
        os.fsync(self._file.fileno())
        if not self._hashed_from_start:
            # A resumed upload is read once more; hashing each part as it comes would read the first ones again each time.
            self._file.seek(0)
            self._hasher = hashlib.sha256()
            while piece := self._file.read(PIECE_BYTES):
                self._hasher.update(piece)
        if self._hasher.hexdigest() != self.digest:
            self.path.unlink()
            return False
        place(self.path, self.digest)
        return True

    def close(self) -> None:
        """Let go of the file and its lock. An upload that holds no byte leaves nothing behind."""
        if self.offset == 0 and _is_same(self._file.fileno(), self.path):
            self.path.unlink()
        with contextlib.suppress(OSError):  # bytes that the full disk refused are still in the buffer
            self._file.close()


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False

"""Weights in, updates out. `docs/architecture.md`, Blobs, has the requests; everything here survives a broken connection."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)

from trainer.agent.server import PASSING, Server, check
from trainer.message import BlobRef

CHUNK_BYTES = 1 << 20
PATIENCE_SECONDS = 600.0
"""How long a transfer or an offer is tried again while the server does not answer."""
CACHED_BLOBS = 4
"""Fetched blobs that are kept while nobody uses them: a round that is asked for again finds its weights here."""

Result = TypeVar("Result")
OnBytes = Callable[[int], None]
"""Called with the number of bytes that have just moved."""


class BlobProblem(Exception):
    """A blob cannot be had or delivered; the message is a sentence."""


def patiently(call: Callable[[], Result], stop: threading.Event) -> Result:
    """Return `call()`, tried again with back-off while the server is out of reach, until `stop` is set or patience ends.

    Only what proves nothing is tried again; a refusal is raised at once.
    """
    retrying = Retrying(
        retry=retry_if_exception_type((*PASSING, _Unfinished)),
        wait=wait_exponential(multiplier=0.05, max=3) + wait_random(0, 0.2),
        stop=stop_after_delay(PATIENCE_SECONDS) | stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        reraise=True,
    )
    return retrying(call)


class _Unfinished(BlobProblem):
    """The server has taken a part, or another upload of the same blob is under way: go on."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class BlobStore:
    """The node's side of the blobs: a small cache under the home, and the folders it shares with the server."""

    def __init__(self, server: Server, cache: Path, node_id: str = "", shared_dirs: tuple[Path, ...] = ()) -> None:
        self.server = server
        self.node_id = node_id
        self.cache = cache
        self.shared_dirs = [folder.expanduser().resolve() for folder in shared_dirs]
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._borrowed: Counter[str] = Counter()
        self._guard = threading.Lock()

    # --- in -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def borrow(self, ref: BlobRef, stop: threading.Event, on_bytes: OnBytes = lambda _: None) -> Iterator[Path]:
        """Give a file with the blob's bytes: the server's own where it is shared, else a verified copy in the cache.

        It stays there until the block ends, whatever else is fetched meanwhile. `on_bytes` hears of what is fetched. Raises BlobProblem, ServerRefusal, or
        what `patiently` gives up with.
        """
        shared = self._shared(ref)
        if shared:
            yield shared
            return
        with self._guard:
            self._borrowed[ref.digest] += 1
            lock = self._fetching[ref.digest]
        try:
            target = self.cache / ref.digest
            with lock:
                if not target.exists():
                    patiently(lambda: self._download(ref, target, stop, on_bytes), stop)
                os.utime(target)
            yield target
        finally:
            with self._guard:
                self._borrowed[ref.digest] -= 1
                self._prune()

    def _shared(self, ref: BlobRef) -> Path | None:
        """Follow `ref.path` only into a folder that the node's owner named, links resolved, and only at the right size."""
        if ref.path is None:
            return None
        path = Path(ref.path).resolve()
        if not any(path.is_relative_to(folder) for folder in self.shared_dirs):
            return None
        try:
            # The file's name is its digest: the server wrote it so and never changes it.
            fits = path.name == ref.digest and path.stat().st_size == ref.size_bytes
        except OSError:
            return None
        return path if fits and os.access(path, os.R_OK) else None

    def _download(self, ref: BlobRef, target: Path, stop: threading.Event, on_bytes: OnBytes) -> None:
        part = target.with_suffix(".part")
        start = part.stat().st_size if part.exists() else 0
        if start < ref.size_bytes or ref.size_bytes == 0:
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
            with self.server.http.stream("GET", f"blobs/{ref.digest}", headers=headers) as response:
                if not response.is_success:
                    response.read()
                check(response)
                with part.open("ab" if response.status_code == 206 else "wb") as f:
                    for chunk in response.iter_raw():
                        f.write(chunk)
                        on_bytes(len(chunk))
                        if stop.is_set():
                            raise BlobProblem("The transfer was stopped.")
        if sha256_of(part) != ref.digest:
            part.unlink()
            raise BlobProblem(f"The bytes of blob {ref.digest[:12]} are not what the server announced.")
        part.replace(target)

    def _prune(self) -> None:
        """Keep what is borrowed, and the newest few of the rest. The caller holds the guard."""
        self._borrowed = +self._borrowed
        unused = [path for path in self.cache.iterdir() if path.stem not in self._borrowed]
        for path in sorted(unused, key=lambda path: path.stat().st_mtime)[:-CACHED_BLOBS]:
            path.unlink()
            self._fetching.pop(path.stem, None)

    def keep(self, ref: BlobRef, target: Path, stop: threading.Event) -> None:
        """Copy the blob to `target`, atomically."""
        new = target.with_name(f".{target.name}.new")
        with self.borrow(ref, stop) as source:
            shutil.copyfile(source, new)
        if sha256_of(new) != ref.digest:
            new.unlink()
            raise BlobProblem(f"The copy of blob {ref.digest[:12]} is damaged.")
        new.replace(target)

    # --- out ----------------------------------------------------------------------------------------------------------

    def deliver(self, path: Path, stop: threading.Event, on_bytes: OnBytes = lambda _: None) -> str:
        """Send a file to the server and return its digest. After a broken connection goes on where the server stands.

        On the server's own machine it is handed over instead, without a copy. `on_bytes` hears of what is sent.
        """
        if digest := self._hand_over(path, stop):
            return digest
        digest = sha256_of(path)
        size = path.stat().st_size
        first = True

        def send() -> None:
            nonlocal first
            # One request when all goes well: only after a failure is it worth asking where the server stands.
            offset = 0 if first else self._offset(digest)
            first = False
            if offset is not None:
                self._put(path, digest, offset, size, stop, on_bytes)

        patiently(send, stop)
        return digest

    def _hand_over(self, path: Path, stop: threading.Event) -> str | None:
        """Link the file into this node's folder among the server's blobs, if the owner shares one, and say so.

        Returns the digest, or None where there is no such folder or the server does not see it: then the bytes are sent.
        """
        for shared in self.shared_dirs:
            name = uuid.uuid4().hex
            mine = shared / "incoming" / self.node_id / name
            try:
                mine.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, mine)
            except OSError:
                continue  # another file system, or this machine may only read there
            try:
                digest = patiently(lambda name=name: self._say_handed(name), stop)  # type: ignore[misc]
            finally:
                mine.unlink(missing_ok=True)
            if digest:
                return digest
        return None

    def _say_handed(self, name: str) -> str | None:
        """Return the digest of the file that was linked for the server; None where it has no such file."""
        response = self.server.http.post(f"blobs/{name}")
        if response.status_code == 404:
            return None  # another machine's folder, or a repeat of what was taken: PUT finds out
        return check(response).headers["blob-digest"]

    def _offset(self, digest: str) -> int | None:
        """Return how many bytes the server has of this node's upload; None when it has the whole blob."""
        response = self.server.http.head(f"blobs/{digest}")
        if response.status_code == 404:
            return int(response.headers.get("Upload-Offset", 0))
        check(response)
        return None

    def _put(self, path: Path, digest: str, offset: int, size: int, stop: threading.Event, on_bytes: OnBytes) -> None:
        headers = {"Content-Length": str(size - offset)}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"

        def body() -> Iterator[bytes]:
            with path.open("rb") as f:
                f.seek(offset)
                while not stop.is_set() and (chunk := f.read(CHUNK_BYTES)):
                    yield chunk
                    on_bytes(len(chunk))

        timeout = httpx.Timeout(60, connect=5)
        response = self.server.http.put(f"blobs/{digest}", content=body(), headers=headers, timeout=timeout)
        if response.status_code in (202, 409):
            raise _Unfinished("The server did not take the whole update.")
        check(response)

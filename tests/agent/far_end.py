"""A small server that speaks the node protocol of `docs/architecture.md`, with the faults that a test asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.message import BlobRef


class FarEnd:
    """Blobs, offers and rendezvous in memory. Tests read the attributes and set the faults."""

    def __init__(self, broker_url: str) -> None:
        self.broker_url = f"redis://{urlsplit(broker_url).hostname}:{urlsplit(broker_url).port}/0"
        self.nodes: dict[str, str] = {}
        self.reset()

        far_end = self

        class Handler(_Handler):
            far = far_end

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(self) -> None:
        """Forget everything but the nodes."""
        self.state = "offline"
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.updates: list[tuple[int, int, dict[str, Any]]] = []
        self.artifacts: list[tuple[int, dict[str, Any]]] = []
        self.posts: list[tuple[str, int, int, dict[str, Any]]] = []
        """keys, shares and answers that unmask: (which, attempt, round, body)."""
        self.refused_posts: dict[str, str] = {}
        """Which of them are refused -> why."""
        self.simulated: list[tuple[int, dict[str, Any]]] = []
        self.rendezvous: dict[int, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.verdict = {"accepted": True, "reason": ""}
        self.break_put_after: int | None = None
        self.break_get_after: int | None = None
        self.token = "tmj_token"
        self.busy_posts = 0
        """So many handed-over files are answered 503 first."""
        self.shared: Path | None = None
        """The server's folder of blobs, where it is on the node's machine."""

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_blob(self, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return BlobRef(digest=digest, size_bytes=len(data))


class _Handler(http.server.BaseHTTPRequestHandler):
    far: FarEnd
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The test's output stays clean."""

    def _answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _route(self) -> None:
        far = self.far
        path = self.path.removeprefix("/node/v1/")
        far.requests.append((self.command, path, self.headers.get("Content-Range") or self.headers.get("Range") or ""))
        if path == "enrol":
            request = json.loads(self._body())
            if request["token"] != far.token:
                return self._answer(403, {"detail": "This token was used before: ask for a new one."})
            far.token = ""
            far.nodes["tms_secret"] = request["name"]
            return self._answer(200, {"node_id": f"id-of-{request['name']}", "secret": "tms_secret"})
        name = far.nodes.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if name is None:
            return self._answer(401, {"detail": "Unknown secret."})
        if path == "me":
            approved = far.state in ("offline", "online")
            return self._answer(
                200, {"state": far.state, "name": name, "broker_url": far.broker_url if approved else None}
            )
        if path.startswith("blobs/"):
            return self._blob(path.removeprefix("blobs/"))
        if found := re.fullmatch(r"attempts/(\d+)/rounds/(\d+)/update", path):
            offer = json.loads(self._body())
            assert offer["digest"] in far.blobs
            far.updates.append((int(found[1]), int(found[2]), offer))
            return self._answer(200, far.verdict)
        if found := re.fullmatch(r"attempts/(\d+)/rounds/(\d+)/(keys|shares|unmasking)", path):
            far.posts.append((found[3], int(found[1]), int(found[2]), json.loads(self._body())))
            reason = far.refused_posts.get(found[3])
            return self._answer(200, {"accepted": reason is None, "reason": reason or ""})
        if found := re.fullmatch(r"attempts/(\d+)/artifacts", path):
            far.artifacts.append((int(found[1]), json.loads(self._body())))
            return self._answer(200, far.verdict)
        if found := re.fullmatch(r"attempts/(\d+)/simulated", path):
            offer = json.loads(self._body())
            assert offer["weights"] in far.blobs
            far.simulated.append((int(found[1]), offer))
            return self._answer(200, far.verdict)
        if found := re.fullmatch(r"attempts/(\d+)/rendezvous", path):
            if self.command == "PUT":
                far.rendezvous[int(found[1])] = json.loads(self._body())
                return self._answer(200, {})
            there = far.rendezvous.get(int(found[1]))
            return self._answer(200, there) if there else self._answer(404, {"detail": "Not yet."})
        return self._answer(404, {"detail": "No such thing."})

    def _blob(self, digest: str) -> None:
        far = self.far
        if self.command == "HEAD":
            if digest in far.blobs:
                return self._answer(200)
            return self._answer(404, Upload_Offset=str(len(far.parts.get(digest, b""))))
        if self.command == "GET":
            return self._send_blob(digest)
        if self.command == "POST":
            if far.busy_posts:
                far.busy_posts -= 1
                return self._answer(503, {"detail": "Busy."})
            handed = [*far.shared.glob(f"incoming/*/{digest}")] if far.shared else []
            if not handed:
                return self._answer(404, {"detail": "No such file."})
            data = handed[0].read_bytes()
            handed[0].unlink()
            taken = hashlib.sha256(data).hexdigest()
            far.blobs[taken] = data
            return self._answer(201, Blob_Digest=taken)
        start = 0
        if span := self.headers.get("Content-Range"):
            start = int(span.removeprefix("bytes ").split("-")[0])
        length = int(self.headers["Content-Length"])
        if far.break_put_after is not None:
            far.parts[digest] = self.rfile.read(far.break_put_after)
            far.break_put_after = None
            self.close_connection = True
            self.connection.close()
            return None
        if start != len(far.parts.get(digest, b"")) and start:
            return self._answer(409, {"detail": "Go on elsewhere."}, Upload_Offset=str(len(far.parts[digest])))
        data = far.parts.pop(digest, b"")[:start] + self.rfile.read(length)
        if hashlib.sha256(data).hexdigest() != digest:
            return self._answer(422, {"detail": "The bytes are not what the digest says."})
        far.blobs[digest] = data
        return self._answer(201, {})

    def _send_blob(self, digest: str) -> None:
        far = self.far
        data = far.blobs.get(digest)
        if data is None:
            return self._answer(404, {"detail": "This node does not need this blob."})
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if far.break_get_after is not None:
            self.wfile.write(data[start : start + far.break_get_after])
            far.break_get_after = None
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()
            return None
        self.wfile.write(data[start:])
        return None

    do_GET = do_HEAD = do_PUT = do_POST = _route

"""The blob server: /node/v1/blobs/<digest>, streaming both ways in constant memory. Bare ASGI, beside Django.

The protocol is described in docs/architecture.md, section Blobs: HEAD tells how far an upload is, PUT goes on from there, and
the last byte's PUT verifies the digest. GET takes a Range. POST takes a file that a node on this machine has left in its folder.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from collections.abc import Callable
from typing import BinaryIO

from channels.db import database_sync_to_async
from django.conf import settings

from webapp.blobs import handover, http, services, uploads
from webapp.blobs.http import Answer, Disconnected, Receive, Scope, Send
from webapp.core.errors import Refusal
from webapp.fleet.auth import approved_node
from webapp.fleet.credentials import hash_secret
from webapp.fleet.models import Node

TRUST_SECONDS = 1.0
"""How long an answer about a secret holds. A long transfer asks again after each, so a revoked node is cut off in it."""


class Door:
    """Whose secret this is, asked of the database at most once a second for each node."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Node, float]] = {}

    async def node_of(self, secret: str) -> Node:
        """Return the approved node. Raises Refusal (401, 403)."""
        key = hash_secret(secret)
        node, until = self._known.get(key, (None, 0.0))
        if node is None or until < time.monotonic():
            self._known.pop(key, None)
            node = await database_sync_to_async(approved_node)(secret)
            self._known[key] = (node, time.monotonic() + TRUST_SECONDS)
        return node


class BlobServer:
    """The ASGI application. `may_read(node, digest)` says whether a node needs a blob; it may ask the database."""

    def __init__(self, *, may_read: Callable[[Node, str], bool]) -> None:
        self._may_read = may_read
        self._door = Door()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._serve(scope, receive, send)
        except Disconnected:
            return
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.sentence)
        except Answer as stop:
            answer = stop
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            answer = _no_room()
        if answer is not None:
            await http.send_answer(send, answer, with_body=scope["method"] != "HEAD")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Return the answer, or None where it was streamed."""
        headers = http.headers_of(scope)
        secret = http.bearer_of(headers)
        node = await self._door.node_of(secret)
        digest = scope["url_route"]["kwargs"]["digest"]
        if scope["method"] == "POST" and handover.is_name(digest):
            return await asyncio.to_thread(_take, str(node.pk), digest)
        if not services.is_digest(digest):
            raise Answer(400, "A blob's name is its SHA-256: 64 hexadecimal digits, in lower case.")
        match scope["method"]:
            case "GET":
                await self._get(node, secret, digest, headers, receive, send)
                return None
            case "HEAD":
                return await asyncio.to_thread(_look_up, str(node.pk), digest)
            case "PUT":
                return await self._put(node, secret, digest, headers, receive)
        raise Answer(405, "A blob takes GET, HEAD and PUT.", headers={"allow": "GET, HEAD, PUT"})

    async def _put(self, node: Node, secret: str, digest: str, headers: dict[str, str], receive: Receive) -> Answer:
        span = http.body_span(headers)
        limit = settings.MAX_BLOB_BYTES
        if span.total > limit:
            # Not worth reading to the end: the connection is closed with the answer.
            sentence = f"This blob has {span.total:,} bytes, and the server takes at most {limit:,} (TRAINMASTER_MAX_BLOB_BYTES)."
            raise Answer(413, sentence, headers={"connection": "close"})
        if await asyncio.to_thread(services.exists, digest):
            return Answer(200)
        try:
            upload = await asyncio.to_thread(uploads.Upload, str(node.pk), digest)
        except uploads.Busy:
            offset = uploads.offset_of(str(node.pk), digest)
            raise Answer(
                409,
                "Another upload of this blob by this node is under way: try again in a second.",
                headers={"upload-offset": str(offset), "retry-after": "1"},
            ) from None
        try:
            return await self._receive(upload, span, secret, receive)
        finally:
            upload.close()

    async def _receive(self, upload: uploads.Upload, span: http.Span, secret: str, receive: Receive) -> Answer:
        if span.first not in (0, upload.offset):
            sentence = f"Of this upload {upload.offset} bytes are here: go on from there."
            raise Answer(409, sentence, headers={"upload-offset": str(upload.offset)})
        if shutil.disk_usage(settings.BLOB_DIR).free < span.total - span.first:
            raise _no_room()
        await asyncio.to_thread(upload.start_at, span.first)
        async for piece in http.body_pieces(receive, span.last - span.first + 1):
            await asyncio.to_thread(upload.write, piece)
            await self._door.node_of(secret)
        if upload.offset < span.total:
            return Answer(202, headers={"upload-offset": str(upload.offset)})
        if not await asyncio.to_thread(upload.finish):
            raise Answer(422, "The bytes are not what their digest says, and were thrown away: send them again.")
        return Answer(201)

    async def _get(
        self, node: Node, secret: str, digest: str, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        # One answer for "not yours" and "not there": a node learns nothing about other nodes' jobs.
        if not await database_sync_to_async(self._may_read)(node, digest):
            raise _not_here()
        try:
            file = await asyncio.to_thread(services.path_of(digest).open, "rb")
        except FileNotFoundError:
            raise _not_here() from None
        with file:
            await self._stream(file, digest, secret, headers, receive, send)

    async def _stream(
        self, file: BinaryIO, digest: str, secret: str, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        total = file.seek(0, 2)
        span = http.wanted_span(headers, total)
        first, last = (span.first, span.last) if span else (0, total - 1)
        answer = {
            "content-type": "application/octet-stream",
            "content-length": str(last - first + 1),
            "accept-ranges": "bytes",
            "etag": f'"{digest}"',
        }
        if span:
            answer["content-range"] = f"bytes {first}-{last}/{total}"
        await http.send_head(send, 206 if span else 200, answer)
        gone = asyncio.ensure_future(_until_disconnect(receive))
        try:
            file.seek(first)
            left = last - first + 1
            while left and not gone.done():
                piece = await asyncio.to_thread(file.read, min(left, services.PIECE_BYTES))
                try:
                    await self._door.node_of(secret)
                except Refusal:
                    return  # revoked in mid-transfer: the server closes a connection whose body stays short
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()


def _take(owner: str, name: str) -> Answer:
    try:
        return Answer(201, headers={"blob-digest": handover.take(owner, name)})
    except FileNotFoundError:
        return Answer(404, "There is no such file in this node's folder: send the bytes with PUT.")
    except handover.TooLarge:
        return Answer(413, f"The server takes at most {settings.MAX_BLOB_BYTES:,} bytes (TRAINMASTER_MAX_BLOB_BYTES).")


def _look_up(owner: str, digest: str) -> Answer:
    try:
        return Answer(200, headers={"content-length": str(services.path_of(digest).stat().st_size)})
    except FileNotFoundError:
        return Answer(404, headers={"upload-offset": str(uploads.offset_of(owner, digest))})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _no_room() -> Answer:
    return Answer(507, "The server's disk is full: ask its administrator to make room, then go on with the upload.")


def _not_here() -> Answer:
    return Answer(404, "There is no such blob, or this node does not need it.")

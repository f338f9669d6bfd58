"""The small HTTP of the blob server: headers in, sentences out. Bare ASGI, since Django would hold a whole body."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from webapp.blobs.services import PIECE_BYTES

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

IDLE_SECONDS = 30.0
"""A peer that sends nothing for this long is gone: its upload is unlocked, so that it may come back and go on."""


class Answer(Exception):
    """A whole answer; raise it to stop. `sentence` is for the person; 2xx answers need none."""

    def __init__(self, status: int, sentence: str = "", *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})


class Disconnected(Exception):
    """The peer is gone: there is nobody to answer."""


class Span(NamedTuple):
    """Bytes `first` to `last`, both included, of `total`. An empty body is (0, -1, 0)."""

    first: int
    last: int
    total: int


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def bearer_of(headers: Mapping[str, str]) -> str:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def body_span(headers: Mapping[str, str]) -> Span:
    """What a PUT carries, from Content-Length and Content-Range. Raises Answer (411, 400)."""
    length = headers.get("content-length", "")
    if not re.fullmatch(r"\d{1,18}", length):
        raise Answer(411, "Send Content-Length, so that the server knows whether it has room.")
    size = int(length)
    if "content-range" not in headers:
        return Span(0, size - 1, size)
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", headers["content-range"].strip())
    span = Span(*map(int, match.groups())) if match else None
    if span is None or span.last - span.first + 1 != size or span.last >= span.total:
        raise Answer(400, "Content-Range must read 'bytes FIRST-LAST/TOTAL' and agree with Content-Length.")
    return span


def wanted_span(headers: Mapping[str, str], total: int) -> Span | None:
    """What a GET asks for; None for all of it. Several ranges, or other units, are answered with all. Raises Answer (416)."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", headers.get("range", "").strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        span = Span(max(0, total - int(last)), total - 1, total)
    else:
        span = Span(int(first), min(int(last), total - 1) if last else total - 1, total)
    if span.first > span.last:
        raise Answer(416, f"This blob has {total} bytes.", headers={"content-range": f"bytes */{total}"})
    return span


async def body_pieces(receive: Receive, size: int) -> AsyncIterator[bytes]:
    """Yield the body in pieces of about PIECE_BYTES, so that a thread is woken once a megabyte and not once a packet.

    What came before the peer went away is yielded too; then Disconnected is raised. Raises Answer (400, 408).
    """
    buffer = bytearray()
    left = size
    more = True
    while more:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                event = await receive()
        except TimeoutError:
            yield bytes(buffer)
            raise Answer(408, "Nothing came for a while: ask with HEAD where to go on.") from None
        if event["type"] == "http.disconnect":
            yield bytes(buffer)
            raise Disconnected
        body = event.get("body", b"")
        more = event.get("more_body", False)
        left -= len(body)
        if left < 0:
            raise Answer(400, "The body is longer than Content-Length says.")
        buffer += body
        if len(buffer) >= PIECE_BYTES or not more:
            yield bytes(buffer)
            buffer.clear()
    if left > 0:
        raise Answer(400, "The body is shorter than Content-Length says.")


async def send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def send_answer(send: Send, answer: Answer, *, with_body: bool) -> None:
    """Send `answer` as a problem document (RFC 9457), or without a body where there is nothing to say."""
    headers = dict(answer.headers)
    body = b""
    if answer.sentence and with_body:
        document = {
            "type": "about:blank",
            "title": HTTPStatus(answer.status).phrase,
            "status": answer.status,
            "detail": answer.sentence,
        }
        body = json.dumps(document).encode()
        headers["content-type"] = "application/problem+json; charset=utf-8"
    headers.setdefault("content-length", str(len(body)))
    await send_head(send, answer.status, headers)
    await send({"type": "http.response.body", "body": body})

"""A file as a download, at constant memory, behind ASGI as behind WSGI."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from django.core.handlers.asgi import ASGIRequest
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.utils.http import content_disposition_header

from webapp.core.errors import Refusal

CHUNK_BYTES = 1 << 18


def send_file(request: HttpRequest, path: Path, *, name: str) -> StreamingHttpResponse:
    """Stream the file at `path` as an attachment called `name`. Raises Refusal (410) where it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise Refusal(
            f"The bytes of '{name}' are not in the store any more: tell an administrator.", status=410
        ) from None
    if not isinstance(request, ASGIRequest):
        return FileResponse(file, as_attachment=True, filename=name)
    # Behind ASGI Django would read a plain file to its end into memory before it sends the first byte.
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    response = StreamingHttpResponse(_chunks(file), content_type=kind)
    response["Content-Length"] = str(path.stat().st_size)
    response["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
    return response


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk

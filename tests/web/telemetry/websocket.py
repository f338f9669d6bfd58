"""A browser's end of a websocket, on the real ASGI application. (channels.testing would need Daphne for this.)"""

from __future__ import annotations

import json
from typing import Any

from asgiref.testing import ApplicationCommunicator


class Websocket(ApplicationCommunicator):
    def __init__(self, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        from webapp.asgi import application

        scope = {"type": "websocket", "path": path, "query_string": b"", "headers": headers, "subprotocols": []}
        super().__init__(application, scope)

    async def connect(self) -> bool:
        """Return whether the server accepted."""
        await self.send_input({"type": "websocket.connect"})
        message = await self.receive_output(timeout=5)
        return bool(message["type"] == "websocket.accept")

    async def say(self, **data: str | bytes) -> None:
        await self.send_input({"type": "websocket.receive", **data})

    async def hear(self) -> dict[str, Any]:
        """Return the next message, parsed."""
        message = await self.receive_output(timeout=5)
        assert message["type"] == "websocket.send", message
        heard: dict[str, Any] = json.loads(message["text"])
        return heard

    async def close_code(self) -> int:
        """Return the code of the close that comes now, or after pings."""
        while (message := await self.receive_output(timeout=5))["type"] == "websocket.send":
            assert json.loads(message["text"]) == {"type": "ping"}
        code: int = message["code"]
        return code

    async def leave(self) -> None:
        await self.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wait(timeout=5)

"""A node's stream, written as its agent writes it."""

from __future__ import annotations

import itertools

import redis

from tests.web.telemetry.conftest import make_logs, make_points
from trainer.message import Message
from trainer.protocol import RunReport
from webapp.fleet.models import Node
from webapp.ingest.streams import stream_key


class Sender:
    """Appends entries to one node's stream, with ids of the agent's choosing."""

    def __init__(self, client: redis.Redis, node: Node, epoch: int = 1) -> None:
        self.client = client
        self.key = stream_key(node.pk)
        self.ids = (f"{epoch}-{sequence}" for sequence in itertools.count(1))

    def raw(self, **fields: str | bytes) -> str:
        entry_id = next(self.ids)
        self.client.xadd(self.key, fields, id=entry_id)
        return entry_id

    def send(self, kind: str, message: Message, data: bytes = b"") -> str:
        return self.raw(kind=kind, head=message.model_dump_json(), **({"data": data} if data else {}))

    def points(self, attempt_id: int, curves: dict[str, list[tuple[int, float]]], **options) -> str:
        return self.send("points", *make_points(attempt_id, curves, **options))

    def logs(self, attempt_id: int, *texts: str, **options) -> str:
        return self.send("logs", make_logs(attempt_id, *texts, **options))

    def report(self, attempt_id: int, kind: str, text: str = "") -> str:
        return self.send("report", RunReport.model_validate({"attempt_id": attempt_id, "kind": kind, "text": text}))

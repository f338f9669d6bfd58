"""The nodes' streams in the broker: read from the committed cursors on, and trimmed behind them.

There is no consumer group. The cursor in the database already says, in the same transaction as the effects, what is
done; a group would be a second truth that a broker flush can lose, and whose members would split a node's stream and
commit it out of order. Reading from the cursor, two ingest processes read the same entries and the cursor's lock lets
one of them win.
"""

from __future__ import annotations

import logging
from typing import cast
from uuid import UUID

import redis

from trainer.protocol import TELEMETRY_STREAM, key_prefix
from webapp.fleet.models import Node
from webapp.ingest.entries import RawEntry
from webapp.telemetry.models import StreamCursor

logger = logging.getLogger(__name__)


def stream_key(node_id: UUID | str) -> str:
    """Return the broker key of a node's stream."""
    return f"{key_prefix(str(node_id))}{TELEMETRY_STREAM}"


class StreamReader:
    """Where this process stands in each node's stream."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._read_up_to: dict[UUID, str] = {}

    def reload(self) -> None:
        """Look up which nodes there are; a new one's stream is read from where it is committed."""
        states = (Node.State.OFFLINE, Node.State.ONLINE)
        nodes = Node.objects.filter(state__in=states).order_by("pk").values_list("pk", "cursor__last_id")
        self._read_up_to = {pk: self._read_up_to.get(pk) or last_id or "0-0" for pk, last_id in nodes}

    def read(self, *, count: int, block_ms: int) -> list[RawEntry]:
        """Return up to `count` new entries of each node, waiting at most `block_ms` for the first one.

        The limit holds for each stream, so that a node with a million entries cannot starve the others.
        """
        if not self._read_up_to:
            return []
        nodes = {stream_key(node_id).encode(): node_id for node_id in self._read_up_to}
        streams = {stream_key(node_id): last_id for node_id, last_id in self._read_up_to.items()}
        try:
            answer = self._client.xread(streams, count=count, block=block_ms)  # type: ignore[arg-type]
        except redis.ResponseError:
            # A node may write what it likes under its prefix: one that put something else there must not stop the others.
            if not self._drop_what_is_no_stream(list(streams)):
                raise
            return []
        found = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", answer)
        raws = [
            RawEntry(nodes[key], entry_id.decode(), fields) for key, entries in found for entry_id, fields in entries
        ]
        self._read_up_to |= {raw.node_id: raw.id for raw in raws}
        return raws

    def _drop_what_is_no_stream(self, keys: list[str]) -> int:
        """Delete the keys that hold something else. Returns how many there were."""
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.type(key)
        wrong = [key for key, kind in zip(keys, pipe.execute(), strict=True) if kind not in (b"stream", b"none")]
        for key in wrong:
            logger.warning(
                "The broker's key %s was no stream, and was deleted: its node writes what no agent does.", key
            )
            self._client.delete(key)
        return len(wrong)

    def forget(self, last_ids: dict[UUID, str]) -> None:
        """Let the broker drop what lies up to these ids: it is committed."""
        pipe = self._client.pipeline(transaction=False)
        for node_id, last_id in last_ids.items():
            epoch, _, sequence = last_id.partition("-")
            pipe.xtrim(stream_key(node_id), minid=f"{epoch}-{int(sequence) + 1}", approximate=False)
        # What one node's key refuses, because it is no stream any more or its id has no successor, is no other's business.
        pipe.execute(raise_on_error=False)


def lock_cursors(node_ids: set[UUID]) -> dict[UUID, StreamCursor]:
    """Return the cursors, locked until the commit; another ingest that has read the same entries waits here."""
    cursors = StreamCursor.objects.select_for_update().filter(pk__in=node_ids).order_by("pk").in_bulk()
    if len(cursors) < len(node_ids):
        new = [StreamCursor(pk=pk) for pk in sorted(node_ids - cursors.keys())]
        StreamCursor.objects.bulk_create(new, ignore_conflicts=True)
        cursors = StreamCursor.objects.select_for_update().filter(pk__in=node_ids).order_by("pk").in_bulk()
    return cursors

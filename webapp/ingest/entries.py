"""One stream entry: read from the broker, checked at the door. Nothing here touches the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from pydantic import ValidationError

from trainer.message import Message
from trainer.protocol import STREAM_KINDS, Logs, Points
from webapp.telemetry.packing import unpack_points

MAX_LINES = 1_000
MAX_POINTS = 100_000
"""Five times what a runner packs."""
MAX_TIME_MS = 253_402_300_799_000
"""The end of the year 9999, beyond which there are no dates."""


class BadEntry(Exception):
    """An entry that cannot be used. `fault` says why, without details that differ from entry to entry."""

    def __init__(self, fault: str, details: str = "") -> None:
        super().__init__(fault, details)
        self.fault = fault
        self.details = details


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry as the broker holds it."""

    node_id: UUID
    id: str
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry with a valid message, or with the `fault` for which it is refused; of that one only the id counts."""

    node_id: UUID
    id: str
    message: Message | None
    data: bytes = b""
    fault: str = ""


def order_of(entry_id: str) -> tuple[int, int]:
    """Return an entry's id as numbers that sort as the stream does."""
    epoch, _, sequence = entry_id.partition("-")
    return int(epoch), int(sequence)


def parse_entry(raw: RawEntry) -> Entry:
    """Return the entry with its message. Raises BadEntry."""
    kind = raw.fields.get(b"kind", b"").decode("ascii", "replace")
    if kind not in STREAM_KINDS:
        raise BadEntry("its kind is unknown", kind[:40])
    try:
        message = STREAM_KINDS[kind].model_validate_json(raw.fields.get(b"head", b""))
    except ValidationError as problem:
        first = problem.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadEntry(f"its {kind} message is not valid", f"{where}: {first['msg']}") from problem
    data = raw.fields.get(b"data", b"")
    if isinstance(message, Points):
        if sum(head.count for head in message.series) > MAX_POINTS:
            raise BadEntry(f"it has more than {MAX_POINTS:,} points")
        try:
            unpack_points(message, data)
        except ValueError as problem:
            raise BadEntry("its points do not fit its head", str(problem)) from problem
        if any("\0" in head.name + head.source for head in message.series):
            raise BadEntry("the name of a metric has a NUL character")
    if isinstance(message, Logs):
        if len(message.lines) > MAX_LINES:
            raise BadEntry(f"it has more than {MAX_LINES} log lines", str(len(message.lines)))
        if not all(0 <= line.time_ms < MAX_TIME_MS for line in message.lines):
            raise BadEntry("the time of a log line is no date")
        if "\0" in message.source or len(message.source) > 100:
            raise BadEntry("the source of its log lines is no name")
    return Entry(raw.node_id, raw.id, message, data)

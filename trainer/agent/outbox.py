"""The node's telemetry stream: in order, exactly once, and never in the way of what is being reported.

An entry's id is `<epoch>-<sequence>`, given when it is first sent. The broker refuses an id that is not larger than the
stream's last one, so an entry whose answer was lost is simply sent again: refused then means that it is there already.
While the broker is away entries wait in memory. Points go first when the room runs out, then log lines; reports never do.
So they do while nobody drains the stream: points and logs wait here once it is full, reports and signs of life still go.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import redis

from trainer.message import Message
from trainer.protocol import TELEMETRY_STREAM, Heartbeat, Logs, Points, RunReport, key_prefix

logger = logging.getLogger(__name__)

BATCH_ENTRIES = 500
ROOM_BYTES = 64 << 20
"""Memory for what waits to be sent."""
STREAM_BYTES = 32 << 20
"""What the stream may take of the broker's memory, which all nodes share, before points and logs wait here."""
FULL_PAUSE_SECONDS = 0.5
"""Pause between two looks at a full stream. A report waits as long."""
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)

KIND_OF: dict[type[Message], str] = {Heartbeat: "heartbeat", Points: "points", Logs: "logs", RunReport: "report"}


@dataclass(slots=True)
class Entry:
    message: Message
    data: bytes = b""
    size_bytes: int = 0
    id: bytes = b""
    """Empty until it is first sent."""
    tries: int = 0

    def fields(self) -> dict[str, str | bytes]:
        fields: dict[str, str | bytes] = {"kind": KIND_OF[type(self.message)], "head": self.message.model_dump_json()}
        if self.data:
            fields["data"] = self.data
        return fields


class Outbox:
    """One thread appends to the stream; `put` never blocks and never fails.

    `next_epoch(above)` gives a persisted number that grows with each call. `on_denied` is called when the broker does not
    know this node: it returns to try again, and what it raises ends the thread.
    """

    def __init__(
        self,
        connect: Callable[[], redis.Redis],
        node_id: str,
        next_epoch: Callable[[int], int],
        on_denied: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._stream = key_prefix(node_id) + TELEMETRY_STREAM
        self._next_epoch = next_epoch
        self._on_denied = on_denied
        self._epoch = next_epoch(0)
        self._sequence = 0
        self._waiting: deque[Entry] = deque()
        self._sending: list[Entry] = []
        self._bytes = 0
        self._stream_is_full = False
        self._dropped_points: Counter[int] = Counter()
        self._dropped_lines: Counter[tuple[int, str]] = Counter()
        self._changed = threading.Condition()
        self._closing = False
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, message: Message, data: bytes = b"") -> None:
        """Queue one message for the stream, to be sent at once."""
        size = len(data) + 200 + (sum(len(line.text) for line in message.lines) if isinstance(message, Logs) else 0)
        with self._changed:
            if isinstance(message, Heartbeat):
                # Only the newest sign of life is worth sending.
                self._bytes -= sum(e.size_bytes for e in self._waiting if isinstance(e.message, Heartbeat))
                self._waiting = deque(e for e in self._waiting if not isinstance(e.message, Heartbeat))
            self._waiting.append(Entry(message, data, size))
            self._bytes += size
            if self._bytes > ROOM_BYTES:
                self._make_room(Points)
                self._make_room(Logs)
            self._changed.notify_all()

    def close(self, timeout: float) -> bool:
        """Send what waits, for at most `timeout` seconds, and end. Returns whether all was sent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._broken.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._waiting

    def _make_room(self, kind: type[Message]) -> None:
        """Leave out the oldest entries of one kind until a tenth of the room is free; count what is left out."""
        kept: deque[Entry] = deque()
        for entry in self._waiting:
            if self._bytes <= ROOM_BYTES * 0.9 or not isinstance(entry.message, kind):
                kept.append(entry)
                continue
            self._bytes -= entry.size_bytes
            match entry.message:
                case Points() as points:
                    lost = sum(series.count for series in points.series) + points.dropped
                    self._dropped_points[points.attempt_id] += lost
                case Logs() as logs:
                    self._dropped_lines[logs.attempt_id, logs.source] += len(logs.lines) + logs.dropped
        self._waiting = kept

    def _run(self) -> None:
        client = self._connect()
        failures = 0
        while True:
            with self._changed:
                while not self._waiting and not self._sending and not self._closing:
                    self._changed.wait()
                if self._closing and not self._waiting and not self._sending:
                    break
                self._take()
            try:
                self._send(client)
                failures = 0
                if self._stream_is_full:
                    if self._closing:
                        break
                    self._broken.wait(FULL_PAUSE_SECONDS)
            except redis.RedisError as error:
                if failures in (0, 30):
                    logger.warning("The broker does not take this node's telemetry, trying again: %s", error)
                if isinstance(error, redis.AuthenticationError):
                    self._on_denied()
                pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                if self._closing and failures > 1:
                    break
                self._broken.wait(pause)
        client.close()

    def _take(self) -> None:
        """Fill `_sending` with what waits, in order; of a full stream's entries only those that cannot wait."""
        held: list[Entry] = []
        while self._waiting and len(self._sending) < BATCH_ENTRIES:
            entry = self._waiting.popleft()
            if self._stream_is_full and isinstance(entry.message, Points | Logs):
                held.append(entry)
                continue
            self._bytes -= entry.size_bytes
            self._count_dropped(entry)
            self._sending.append(entry)
        self._waiting.extendleft(reversed(held))

    def _count_dropped(self, entry: Entry) -> None:
        """Write what was left out before into the next entry of the same attempt."""
        match entry.message:
            case Points(attempt_id=attempt) as points if self._dropped_points[attempt]:
                lost = self._dropped_points.pop(attempt)
                entry.message = points.model_copy(update={"dropped": points.dropped + lost})
            case Logs(attempt_id=attempt, source=source) as logs if self._dropped_lines[attempt, source]:
                lost = self._dropped_lines.pop((attempt, source))
                entry.message = logs.model_copy(update={"dropped": logs.dropped + lost})

    def _send(self, client: redis.Redis) -> None:
        """Append all of `_sending` in one exchange; what is confirmed leaves the list. Raises RedisError to try again."""
        pipeline = client.pipeline(transaction=False)
        for entry in self._sending:
            if not entry.id:
                self._sequence += 1
                entry.id = b"%d-%d" % (self._epoch, self._sequence)
            entry.tries += 1
            pipeline.xadd(self._stream, entry.fields(), id=entry.id)  # type: ignore[arg-type]
        pipeline.memory_usage(self._stream)
        *answers, used = pipeline.execute(raise_on_error=False)
        self._stream_is_full = isinstance(used, int) and used > STREAM_BYTES
        kept: list[Entry] = []
        problem: redis.RedisError | None = None
        for entry, answer in zip(self._sending, answers, strict=True):
            if not isinstance(answer, redis.RedisError):
                continue
            if "equal or smaller" in str(answer) and entry.tries > 1:
                continue  # an earlier try arrived, and only its answer was lost
            # The broker said no (it is out of memory, for one), so it is certainly not there: it gets a new number, behind those that went through.
            entry.id, entry.tries = b"", 0
            kept.append(entry)
            problem = answer
        self._sending = kept
        if problem and "equal or smaller" in str(problem):
            # Never sent before, and yet not larger than the last: the clock and the epoch file are both behind.
            last = client.xinfo_stream(self._stream)["last-generated-id"]
            self._epoch, self._sequence = self._next_epoch(int(last.split(b"-")[0])), 0
        if problem:
            raise problem

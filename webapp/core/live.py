"""What the browsers hear: every websocket payload, and the one function that sends them.

Payloads are hints. The page loads the truth over HTTP, then applies `points` and `logs` and refetches on `changed`.
Only server processes publish, never a node; so a node cannot forge what a page shows.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Literal

import msgpack
import redis
from typing_extensions import TypedDict  # pydantic reads these, and wants this one before Python 3.12

from webapp.core.broker import broker


class SeriesFrame(TypedDict):
    name: str
    source: str
    steps: list[int]
    times: list[float]
    """Unix seconds."""
    values: list[float | str]
    """Numbers; NaN and the infinities as the strings NaN, Infinity, -Infinity, which JSON has no numbers for."""


class PointsMessage(TypedDict):
    """New points of a job. `seq` grows by one a frame, points and logs alike: a page that misses one refetches."""

    type: Literal["points"]
    attempt: int
    seq: int
    series: list[SeriesFrame]


class LogMessage(TypedDict):
    """New log lines of a job, numbered with the same `seq` as the points."""

    type: Literal["logs"]
    attempt: int
    seq: int
    skipped: int
    """Lines before these that the frame has no room for: the page fetches them."""
    lines: list[LogFrame]


class LogFrame(TypedDict):
    id: int
    source: str
    time: float
    level: str
    text: str


class ChangedMessage(TypedDict):
    """Something else about a job changed; the page refetches that part."""

    type: Literal["changed"]
    job: int
    what: Literal["state", "rounds", "artifacts"]


LiveMessage = PointsMessage | LogMessage | ChangedMessage


class ResyncMessage(TypedDict):
    """This socket was too slow and frames were thrown away: the page loads everything anew."""

    type: Literal["resync"]


class PingMessage(TypedDict):
    """Nothing happened, and the connection still carries: a page that hears nothing at all reconnects."""

    type: Literal["ping"]


SocketMessage = ResyncMessage | PingMessage
"""What a socket says of itself, besides what is published."""


def job_group(job_id: int | Literal["*"]) -> str:
    """The group of everyone who watches one job."""
    return f"job-{job_id}"


def team_group(team_id: int) -> str:
    """The group of everyone who watches one team's job list."""
    return f"team-{team_id}"


def is_watched() -> bool:
    """Whether a browser listens to any job at this moment. Raises RedisError."""
    # The layer subscribes to a group's channel while a socket is in the group, and to no longer.
    return bool(broker().pubsub_channels(_channel(job_group("*"))))


def publish(messages: Sequence[tuple[str, LiveMessage]]) -> None:
    """Send each (group, message), in order, in one round trip. A broker that is away loses them: they are hints.

    Each message is serialised once, here; the sockets forward its text. A plain PUBLISH in the channel layer's own
    format: `async_to_sync(group_send)` opens a connection per call and reaches 250 messages a second, this 17,900
    (measured).
    """
    if not messages:
        return
    pipe = broker().pipeline(transaction=False)
    for group, message in messages:
        pipe.publish(_channel(group), msgpack.packb({"type": "live.message", "text": json.dumps(message)}))
    with contextlib.suppress(redis.RedisError):
        pipe.execute()


def _channel(group: str) -> str:
    """Return where the channel layer hears what is sent to a group."""
    return f"live__group__{group}"

"""The node's stream: in order, once, and bounded while the broker is away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import redis

from tests.agent.conftest import eventually
from trainer.agent import outbox as module
from trainer.agent.outbox import Outbox
from trainer.protocol import TELEMETRY_STREAM, Facts, Heartbeat, Logs, Points, RunReport, SeriesHead, key_prefix

FACTS = Facts(
    hostname="h",
    platform="p",
    agent_version="0",
    torch_version="0",
    python_version="3",
    num_cpus=1,
    memory_bytes=1,
)


def points(count: int = 1) -> tuple[Points, bytes]:
    head = Points(attempt_id=1, base_time_ms=0, series=[SeriesHead(name="loss", source="n", count=count)])
    return head, b"\0" * 16 * count


class Flaky:
    """Connections that lose the answer of what they have just done, as often as told."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.lose_answers = 0
        self.away = False

    def __call__(self) -> redis.Redis:
        client = redis.Redis.from_url(self._url)
        pipeline = client.pipeline

        def flaky_pipeline(**options: bool) -> redis.client.Pipeline:
            made = pipeline(**options)
            execute = made.execute

            def flaky_execute(**flags: bool) -> list[object]:
                if self.away:
                    raise redis.ConnectionError("away")
                answers = execute(**flags)
                if self.lose_answers:
                    self.lose_answers -= 1
                    raise redis.ConnectionError("the answer was lost")
                return answers

            made.execute = flaky_execute
            return made

        client.pipeline = flaky_pipeline  # type: ignore[method-assign]
        return client


@pytest.fixture
def flaky(broker_url: str) -> Flaky:
    return Flaky(broker_url)


@pytest.fixture
def node_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def outbox(flaky: Flaky, node_id: str) -> Iterator[Outbox]:
    epochs = iter(range(100, 200))
    made = Outbox(flaky, node_id, lambda above: max(next(epochs), above + 1))
    made.start()
    yield made
    made.close(5)


def stream(node_broker: redis.Redis, node_id: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return node_broker.xrange(key_prefix(node_id) + TELEMETRY_STREAM)


def reports(node_broker: redis.Redis, node_id: str) -> list[int]:
    entries = [fields for _, fields in stream(node_broker, node_id) if fields[b"kind"] == b"report"]
    return [RunReport.model_validate_json(fields[b"head"]).attempt_id for fields in entries]


def test_entries_are_numbered_in_order(outbox: Outbox, node_broker: redis.Redis, node_id: str) -> None:
    for number in range(1200):
        outbox.put(RunReport(attempt_id=number, kind="started"))
    eventually(lambda: len(reports(node_broker, node_id)) == 1200)
    assert reports(node_broker, node_id) == list(range(1200))
    assert [entry_id for entry_id, _ in stream(node_broker, node_id)][:2] == [b"100-1", b"100-2"]


def test_a_lost_answer_repeats_nothing(outbox: Outbox, flaky: Flaky, node_broker: redis.Redis, node_id: str) -> None:
    flaky.lose_answers = 3
    for number in range(20):
        outbox.put(RunReport(attempt_id=number, kind="started"))
    eventually(lambda: flaky.lose_answers == 0)
    outbox.put(RunReport(attempt_id=20, kind="started"))
    eventually(lambda: 20 in reports(node_broker, node_id))
    assert reports(node_broker, node_id) == list(range(21))


def test_points_go_first_when_the_room_runs_out(
    outbox: Outbox, flaky: Flaky, node_broker: redis.Redis, node_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM_BYTES", 200_000)
    flaky.away = True
    outbox.put(RunReport(attempt_id=1, kind="started"))
    outbox.put(Logs(attempt_id=1, source="n", lines=[]))
    for _ in range(300):
        outbox.put(*points(count=100))
    outbox.put(RunReport(attempt_id=2, kind="finished"))
    flaky.away = False
    eventually(lambda: reports(node_broker, node_id) == [1, 2])
    heads = [
        Points.model_validate_json(fields[b"head"])
        for _, fields in stream(node_broker, node_id)
        if fields[b"kind"] == b"points"
    ]
    assert len(heads) < 130
    kept = sum(series.count for head in heads for series in head.series)
    assert kept + sum(head.dropped for head in heads) == 30_000


def test_only_the_newest_sign_of_life_waits(
    outbox: Outbox, flaky: Flaky, node_broker: redis.Redis, node_id: str
) -> None:
    flaky.away = True
    outbox.put(RunReport(attempt_id=1, kind="started"))  # occupies the sender
    eventually(lambda: not outbox._waiting)
    for number in range(10):
        outbox.put(Heartbeat(boot_id="b", facts=FACTS, cpu_percent=0, memory_used_bytes=0, attempts=[number]))
    assert outbox._bytes == outbox._waiting[0].size_bytes  # the others take no room any more
    flaky.away = False
    eventually(lambda: len(stream(node_broker, node_id)) == 2)
    (_, fields) = stream(node_broker, node_id)[-1]
    assert Heartbeat.model_validate_json(fields[b"head"]).attempts == [9]


def test_numbers_behind_the_streams_are_moved_on(outbox: Outbox, node_broker: redis.Redis, node_id: str) -> None:
    """The epoch file was lost and the clock is wrong: nothing may vanish."""
    node_broker.xadd(key_prefix(node_id) + TELEMETRY_STREAM, {"kind": "old"}, id="5000-1")
    for number in range(3):
        outbox.put(RunReport(attempt_id=number, kind="started"))
    eventually(lambda: reports(node_broker, node_id) == [0, 1, 2])
    assert stream(node_broker, node_id)[-1][0].startswith(b"5001-")


def kinds(node_broker: redis.Redis, node_id: str) -> list[bytes]:
    return [fields[b"kind"] for _, fields in stream(node_broker, node_id)]


def test_while_nobody_drains_a_full_stream_only_reports_and_signs_of_life_go(
    outbox: Outbox, node_broker: redis.Redis, node_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_BYTES", 200_000)
    monkeypatch.setattr(module, "FULL_PAUSE_SECONDS", 0.01)
    for _ in range(200):
        outbox.put(*points(count=100))
    eventually(lambda: outbox._stream_is_full)
    full = len(stream(node_broker, node_id))
    monkeypatch.setattr(module, "ROOM_BYTES", 200_000)
    for _ in range(300):
        outbox.put(*points(count=100))
    outbox.put(Logs(attempt_id=1, source="n", lines=[]))
    outbox.put(RunReport(attempt_id=1, kind="finished"))
    outbox.put(Heartbeat(boot_id="b", facts=FACTS, cpu_percent=0, memory_used_bytes=0, attempts=[]))
    eventually(lambda: kinds(node_broker, node_id)[full:] == [b"report", b"heartbeat"])

    heads: list[Points] = []

    def drained() -> bool:
        """Do as ingest does, until the log line that waits behind all points has come."""
        entries = stream(node_broker, node_id)
        if not entries:
            return False
        node_broker.xtrim(key_prefix(node_id) + TELEMETRY_STREAM, maxlen=0, approximate=False)
        heads.extend(Points.model_validate_json(f[b"head"]) for _, f in entries if f[b"kind"] == b"points")
        return any(fields[b"kind"] == b"logs" for _, fields in entries)

    eventually(drained)
    kept = sum(series.count for head in heads for series in head.series)
    lost = sum(head.dropped for head in heads)
    assert kept + lost == 50_000
    assert lost > 0


def test_the_end_does_not_wait_for_a_full_stream(
    outbox: Outbox, node_broker: redis.Redis, node_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_BYTES", 0)
    outbox.put(RunReport(attempt_id=1, kind="started"))
    eventually(lambda: outbox._stream_is_full)
    outbox.put(*points())
    outbox.put(RunReport(attempt_id=1, kind="finished"))
    assert not outbox.close(5)  # the points are left
    assert not outbox._thread.is_alive()
    assert kinds(node_broker, node_id) == [b"report", b"report"]


def test_what_a_broker_without_memory_refuses_is_sent_again(
    outbox: Outbox, node_broker: redis.Redis, node_id: str
) -> None:
    most = node_broker.config_get("maxmemory")["maxmemory"]
    node_broker.config_set("maxmemory", 1)
    try:
        for number in range(20):
            outbox.put(RunReport(attempt_id=number, kind="started"))
        eventually(lambda: len(outbox._sending) == 20 and outbox._sequence > 20)
    finally:
        node_broker.config_set("maxmemory", most)
    eventually(lambda: len(reports(node_broker, node_id)) == 20)
    assert reports(node_broker, node_id) == list(range(20))

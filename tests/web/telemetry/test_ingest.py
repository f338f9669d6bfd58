import json
import math
import time

import pytest
from django.db.utils import OperationalError

from tests.web.fleet.helpers import heartbeat
from tests.web.telemetry.conftest import make_node
from tests.web.telemetry.sender import Sender
from webapp.core.live import job_group
from webapp.fleet.models import Node
from webapp.ingest.loop import ALIVE_KEY, Ingest
from webapp.jobs.models import Stray
from webapp.telemetry.models import LogLine, Series, StreamCursor
from webapp.telemetry.selectors import read_logs, read_metrics

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sender(broker, node) -> Sender:
    return Sender(broker, node)


def drain(ingest: Ingest) -> None:
    num_quiet = 0
    while num_quiet < 2:  # the first may have stored what was read before
        num_quiet = 0 if ingest.tick() or ingest._pending else num_quiet + 1


def test_a_tick_stores_all_kinds(sender, broker, attempt, node, listener):
    Node.objects.filter(pk=node.pk).update(state=Node.State.OFFLINE)
    sender.send("heartbeat", heartbeat(boot_id="b2"))
    sender.points(attempt.pk, {"train/loss": [(0, 2.5), (1, math.nan)]})
    sender.logs(attempt.pk, "hello")
    last = sender.points(attempt.pk, {"train/loss": [(2, 2.0)]})
    Ingest().tick()
    node.refresh_from_db()
    assert (node.state, node.boot_id) == ("online", "b2")
    assert read_metrics(attempt.job_id)["series"][0]["values"] == [2.5, "NaN", 2.0]
    assert [line["text"] for line in read_logs(attempt.job_id)["lines"]] == ["hello"]
    # One frame of points and one of logs, whatever the number of entries.
    assert [(frame["type"], frame["seq"]) for frame in listener.frames(2)] == [("points", 1), ("logs", 2)]
    assert StreamCursor.objects.get().last_id == last
    assert broker.xlen(sender.key) == 0


def test_a_report_reaches_the_assignment(sender, attempt):
    attempt.job.mode = "distributed"
    attempt.job.save(update_fields=["mode"])
    sender.report(attempt.pk, "started")
    Ingest().tick()
    assert attempt.assignments.get().started_at is not None


def test_of_many_heartbeats_the_newest_counts(sender, node):
    for cpu_percent in (10, 20, 30):
        sender.send("heartbeat", heartbeat(boot_id="b1", cpu_percent=cpu_percent))
    Ingest().tick()
    node.refresh_from_db()
    assert node.cpu_percent == 30


def test_what_was_committed_and_not_yet_trimmed_is_stored_once(sender, broker, attempt, monkeypatch):
    for step in range(5):
        sender.points(attempt.pk, {"loss": [(step, 1.0)]})
    ingest = Ingest()
    monkeypatch.setattr(ingest._reader, "forget", lambda last_ids: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):  # the process dies between the commit and the trim
        ingest.tick()
    assert broker.xlen(sender.key) == 5
    sender.points(attempt.pk, {"loss": [(5, 1.0)]})
    Ingest().tick()
    assert read_metrics(attempt.job_id)["series"][0]["steps"] == [0, 1, 2, 3, 4, 5]
    assert broker.xlen(sender.key) == 0


def test_two_ingests_that_read_the_same_entries_store_them_once(sender, attempt):
    sender.points(attempt.pk, {"loss": [(0, 1.0)]})
    one, other = Ingest(), Ingest()
    batches = []
    for ingest in (one, other):
        ingest._reader.reload()
        batches.append(ingest.store.parse(ingest._reader.read(count=10, block_ms=1)))
    one.store.store(batches[0])
    other.store.store(batches[1])
    assert Series.objects.get().count == 1
    assert (one.store.num_entries, other.store.num_entries) == (1, 0)


BAD = {
    "unknown kind": lambda attempt: {"kind": "gossip", "head": "{}"},
    "no fields": lambda attempt: {"x": "y"},
    "no json": lambda attempt: {"kind": "points", "head": b"\xff{"},
    "wrong type": lambda attempt: {"kind": "heartbeat", "head": '{"boot_id": 3}'},
    "too short": lambda attempt: {"kind": "points", "head": points_head(attempt, "node-1", 2), "data": b"x" * 16},
    "the server's name": lambda attempt: {
        "kind": "points",
        "head": points_head(attempt, "aggregate", 1),
        "data": b"x" * 16,
    },
    "too many points": lambda attempt: {
        "kind": "points",
        "head": points_head(attempt, "node-1", 100_001),
        "data": b"x" * 16 * 100_001,
    },
    "a foreign attempt": lambda attempt: {"kind": "points", "head": points_head(4_711, "node-1", 1), "data": b"x" * 16},
    "another node's curve": lambda attempt: {
        "kind": "points",
        "head": points_head(attempt, "node-2", 1),
        "data": b"x" * 16,
    },
    "another node's log": lambda attempt: {"kind": "logs", "head": logs_head(attempt, "x", 1, source="node-2")},
    "a line of 10 MB": lambda attempt: {"kind": "logs", "head": logs_head(attempt, "x" * 10_000_000, 0)},
    "a line of no date": lambda attempt: {"kind": "logs", "head": logs_head(attempt, "x", 10**18)},
}


def points_head(attempt_id: int, source: str, count: int) -> str:
    series = [{"name": "loss", "source": source, "count": count}]
    return json.dumps({"attempt_id": attempt_id, "base_time_ms": 1, "series": series})


def logs_head(attempt_id: int, text: str, time_ms: int, source: str = "node-1") -> str:
    return json.dumps({"attempt_id": attempt_id, "source": source, "lines": [{"time_ms": time_ms, "text": text}]})


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_entry_is_counted_and_harms_nothing_else(fault, sender, broker, attempt, caplog):
    sender.points(attempt.pk, {"loss": [(0, 1.0)]})
    sender.raw(**BAD[fault](attempt.pk))
    sender.raw(**BAD[fault](attempt.pk))
    sender.points(attempt.pk, {"loss": [(1, 1.0)]})
    ingest = Ingest()
    ingest.tick()
    assert read_metrics(attempt.job_id)["series"][0]["steps"] == [0, 1]
    assert ingest.store.bad_entries.total() == 2
    stray = Stray.objects.get()
    assert (stray.kind, stray.count) == ("telemetry", 2)
    assert stray.last_reason.startswith("An entry of its telemetry was left out: ")
    assert len([record for record in caplog.records if "was left out, because" in record.message]) == 1
    assert broker.xlen(sender.key) == 0


def test_a_node_cannot_write_for_another_nodes_attempt(broker, attempt):
    thief = Sender(broker, make_node("thief"))
    thief.points(attempt.pk, {"loss": [(0, 0.0)]})
    thief.logs(attempt.pk, "I was here")
    ingest = Ingest()
    ingest.tick()
    assert not Series.objects.exists()
    assert not LogLine.objects.exists()
    assert ingest.store.bad_entries.total() == 2


def test_an_entry_that_breaks_the_store_is_found_and_left_out(sender, attempt, monkeypatch):
    def refuse_zero(*, entries, cache):
        if any(head.name == "broken" for points, _ in entries for head in points.series):
            raise ZeroDivisionError
        record_points(entries=entries, cache=cache)

    from webapp.ingest.store import record_points

    monkeypatch.setattr("webapp.ingest.store.record_points", refuse_zero)
    for name in ("loss", "broken", "loss"):
        sender.points(attempt.pk, {name: [(0, 1.0)]})
    ingest = Ingest()
    ingest.tick()
    assert [(series.name, series.count) for series in Series.objects.all()] == [("loss", 2)]
    assert Stray.objects.get().last_reason.endswith("it cannot be stored.")
    sender.points(attempt.pk, {"loss": [(1, 1.0)]})  # the ids of what was rolled back are forgotten
    drain(ingest)
    assert Series.objects.get().count == 3


def test_a_node_that_floods_does_not_delay_another(sender, broker, attempt, node):
    quiet_node = make_node("quiet")
    quiet = Sender(broker, quiet_node)
    flood = {f"m{i}": [(step, 0.0) for step in range(1_000)] for i in range(10)}  # 10,000 points an entry
    for _ in range(60):
        sender.points(attempt.pk, flood)
    quiet.send("heartbeat", heartbeat(boot_id="b9"))
    ingest = Ingest()
    started = time.monotonic()
    ingest.tick()
    seconds = time.monotonic() - started
    quiet_node.refresh_from_db()
    assert quiet_node.boot_id == "b9"
    assert broker.xlen(sender.key) > 0  # the flood is not through, and has not been waited for
    assert seconds < 2  # 0.2 s on a quiet machine
    drain(ingest)
    assert Series.objects.get(name="m0").count == 60_000


def test_a_node_that_joins_is_read_within_a_second(broker, attempt):
    ingest = Ingest()
    ingest.tick()
    late = Sender(broker, make_node("late"))
    late.send("heartbeat", heartbeat(boot_id="b7"))
    deadline = time.monotonic() + 1.5
    while not Node.objects.filter(boot_id="b7").exists():
        assert time.monotonic() < deadline
        ingest.tick()


def test_a_flushed_broker_is_read_on(sender, broker, attempt, node):
    ingest = Ingest()
    sender.points(attempt.pk, {"loss": [(0, 1.0)]})
    ingest.tick()
    broker.flushall()
    Sender(broker, node, epoch=2).points(attempt.pk, {"loss": [(1, 1.0)]})
    drain(ingest)
    assert read_metrics(attempt.job_id)["series"][0]["steps"] == [0, 1]


def test_curves_that_nobody_watches_are_held_for_a_moment(sender, broker, attempt):
    ingest = Ingest()
    ingest.tick()
    for step in range(3):  # the first is stored at once: nothing was for a while
        sender.points(attempt.pk, {"loss": [(step, 1.0)]})
        ingest.tick()
    assert Series.objects.get().count == 1
    assert broker.xlen(sender.key) == 2  # not committed, so not forgotten either
    drain(ingest)
    assert Series.objects.get().count == 3


def test_curves_that_are_watched_are_stored_at_once(sender, broker, attempt):
    listener = broker.pubsub()
    listener.subscribe(f"live__group__{job_group(attempt.job_id)}")
    listener.get_message(timeout=1)
    ingest = Ingest()
    for step in range(3):
        sender.points(attempt.pk, {"loss": [(step, 1.0)]})
        ingest.tick()
        assert Series.objects.get().count == step + 1
    listener.close()


def test_a_sign_of_life_takes_along_what_is_held(sender, attempt):
    ingest = Ingest()
    for step in range(2):
        sender.points(attempt.pk, {"loss": [(step, 1.0)]})
        ingest.tick()
    sender.send("heartbeat", heartbeat(boot_id="b1"))
    ingest.tick()
    assert Series.objects.get().count == 2


def test_nothing_more_is_read_while_the_store_fails(sender, broker, attempt, monkeypatch):
    ingest = Ingest()
    store = ingest.store.store
    monkeypatch.setattr(ingest.store, "store", lambda entries: (_ for _ in ()).throw(OperationalError("away")))
    for step in range(3):
        sender.points(attempt.pk, {"loss": [(step, 1.0)]})
        with pytest.raises(OperationalError):
            ingest.tick()
    assert len(ingest._pending) == 1
    monkeypatch.setattr(ingest.store, "store", store)
    drain(ingest)
    assert Series.objects.get().count == 3


def test_it_says_that_it_is_alive(sender, broker, attempt):
    ingest = Ingest()
    sender.points(attempt.pk, {"loss": [(0, 1.0), (1, 1.0)]})
    before = time.time()
    ingest.tick()
    sign = json.loads(broker.get(ALIVE_KEY))
    assert before <= sign["at"] <= time.time()
    assert sign["since"] <= sign["at"]
    assert (sign["entries"], sign["points"], sign["bad_entries"]) == (1, 2, 0)


@pytest.mark.parametrize("num_entries", [1, 12])
def test_the_queries_of_a_tick_do_not_depend_on_its_size(sender, attempt, num_entries, django_assert_num_queries):
    ingest = Ingest()
    curves = {f"m{i}": [(0, 1.0)] for i in range(8)}
    sender.points(attempt.pk, curves)
    ingest.tick()
    for _ in range(num_entries):
        sender.points(attempt.pk, curves)
        sender.send("heartbeat", heartbeat(boot_id="b1"))
    # begin; cursors; heartbeat; feed: lock and advance; chunks; counters; cursors; commit
    with django_assert_num_queries(9):
        ingest.tick()


@pytest.mark.parametrize("put", [lambda broker, key: broker.set(key, "x"), lambda broker, key: broker.lpush(key, "x")])
def test_a_node_that_puts_something_else_in_its_streams_place_stops_nobody(broker, sender, attempt, put):
    foe = Sender(broker, make_node("foe"))
    put(broker, foe.key)
    sender.points(attempt.pk, {"loss": [(0, 1.0)]})
    ingest = Ingest()
    ingest.tick()
    ingest.tick()
    assert Series.objects.get().count == 1
    assert not broker.exists(foe.key)


def test_a_node_that_spends_the_last_id_harms_only_itself(broker, sender, attempt):
    foe = Sender(broker, make_node("foe"))
    broker.xadd(foe.key, {"kind": "gossip", "head": "{}"}, id=f"{2**64 - 1}-{2**64 - 1}")
    ingest = Ingest()
    ingest.tick()
    sender.points(attempt.pk, {"loss": [(0, 1.0)]})
    drain(ingest)
    assert Series.objects.get().count == 1

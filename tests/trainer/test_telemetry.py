from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

from trainer.protocol import Points
from trainer.telemetry import MetricLog, pack_points, unpack_points


def test_what_is_logged_arrives_in_order(heard) -> None:
    before = time.time() * 1000
    with MetricLog(7, "rank 3", heard) as log:
        for step in range(1, 101):
            log.log(step, {"train/loss": 1 / step, "train/accuracy": step / 100})
    after = time.time() * 1000
    assert heard.curves()["train/loss"] == [(step, 1 / step) for step in range(1, 101)]
    head, data = heard.packs[0]
    assert head.attempt_id == 7
    first = unpack_points(head, data)[0]
    assert first.source == "rank 3"
    assert before - 1 <= first.times_ms[0] <= first.times_ms[-1] <= after


def test_first_point_after_a_pause_leaves_at_once() -> None:
    arrived = threading.Event()
    with MetricLog(1, "n", lambda head, data: arrived.set(), flush_seconds=30) as log:
        time.sleep(0.05)
        log.log(1, {"loss": 1.0})
        assert arrived.wait(5)


def test_nan_and_infinities_are_kept(heard) -> None:
    with MetricLog(1, "n", heard) as log:
        for step, value in enumerate([math.nan, math.inf, -math.inf]):
            log.log(step, {"loss": value})
    values = [value for _, value in heard.curves()["loss"]]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_full_buffer_drops_and_counts() -> None:
    heard: list[Points] = []
    gate, inside = threading.Event(), threading.Event()

    def slow_sink(head: Points, data: bytes) -> None:
        inside.set()
        gate.wait(10)
        heard.append(head)

    with MetricLog(1, "n", slow_sink, capacity=10) as log:
        log.log(0, {"loss": 0.0})
        assert inside.wait(5)  # the thread hangs in the sink
        started = time.perf_counter()
        for step in range(1, 31):
            log.log(step, {"loss": 0.0, "accuracy": 0.0})
        assert time.perf_counter() - started < 1  # it did not wait for the sink
        assert log.num_dropped == 40  # 10 calls wait, 20 calls of two values were left out
        gate.set()
    assert sum(series.count for head in heard for series in head.series) == 1 + 20
    assert sum(head.dropped for head in heard) == 40


def test_broken_sink_costs_points_and_nothing_else() -> None:
    heard: list[Points] = []
    broken = True

    def sink(head: Points, data: bytes) -> None:
        if broken:
            raise BrokenPipeError
        heard.append(head)

    with MetricLog(1, "n", sink, flush_seconds=0) as log:
        log.log(1, {"loss": 0.0})
        deadline = time.monotonic() + 5
        while not log.num_dropped and time.monotonic() < deadline:
            time.sleep(0.001)
        broken = False
        log.log(2, {"loss": 0.0})
    assert [(len(head.series), head.dropped) for head in heard] == [(1, 1)]


def test_what_no_pack_can_hold_is_counted(heard) -> None:
    with MetricLog(1, "n", heard) as log:
        log.log(-1, {"loss": 0.0})
        log.log(2**32, {"loss": 0.0})
        log.log(1, {"x" * 101: 0.0, "": 0.0})
        log.log(1, {"loss": "high"})  # type: ignore[dict-item]
        log.log(1, {"loss": 0.5})
    assert heard.curves() == {"loss": [(1, 0.5)]}
    assert sum(head.dropped for head, _ in heard.packs) == 5


def test_large_bursts_are_cut_into_packs(heard) -> None:
    with MetricLog(1, "n", heard, flush_seconds=0.2) as log:
        for step in range(50_000):
            log.log(step, {"loss": 0.0})
    assert [step for step, _ in heard.curves()["loss"]] == list(range(50_000))
    assert max(len(data) for _, data in heard.packs) <= 16 * 20_000


def test_clock_set_back_counts_as_the_base() -> None:
    head, data = pack_points(1, "n", {"a": ([1, 2], [100.0, 90.0], [0.0, 0.0]), "b": ([1], [99.5], [0.0])})
    times = [series.times_ms.tolist() for series in unpack_points(head, data)]
    assert head.base_time_ms == 99_500
    assert times == [[100_000, 99_500], [99_500]]


def test_layout_is_that_of_the_protocol() -> None:
    head, data = pack_points(1, "n", {"a": ([1, 2], [10.0, 10.002], [0.5, 0.25])})
    assert data == (
        np.array([1, 2], "<u4").tobytes() + np.array([0, 2], "<u4").tobytes() + np.array([0.5, 0.25], "<f8").tobytes()
    )
    with pytest.raises(ValueError, match="31 bytes, and its head announces 32"):
        unpack_points(head, data[:-1])


def test_a_value_costs_at_most_2_microseconds() -> None:
    with MetricLog(1, "n", lambda head, data: None) as log:
        best = math.inf
        for _ in range(20):  # the best of many: others share this machine
            started = time.perf_counter()
            for step in range(1000):
                log.log(step, {"train/loss": 0.5})
            best = min(best, time.perf_counter() - started)
    assert best / 1000 < 2e-6


def test_flush_sends_before_it_returns(heard) -> None:
    with MetricLog(1, "n", heard, flush_seconds=30) as log:
        log.log(1, {"loss": 1.0})
        log.flush()
        log.log(2, {"loss": 2.0})  # the thread may be in its pause of 30 s
        log.flush()
        assert heard.curves()["loss"] == [(1, 1.0), (2, 2.0)]

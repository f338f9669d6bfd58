"""The whole road: from a submission to the first metric, a round's overhead, from log() to the browser's socket."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

from websockets.sync.client import connect

from benchmarks.ground import Ground
from benchmarks.table import Figure
from tests.realstack import Stack, digits, wait_for


def measure(ground: Ground) -> Iterator[Figure]:
    """Measure on an idle stack with two warm nodes."""
    stack = ground.stack
    yield Figure(
        "submission to first metric stored, federated",
        [first_metric_seconds(stack) for _ in range(10)],
        "s",
        1.0,
        reference="Flower 1.42, to the end of round 1: 14.8 s",
    )
    overheads = round_overheads(stack, rounds=100)
    beside = "Flower 1.42: about 9 s; NVIDIA FLARE 2.9: 2.4 to 2.9 s"
    yield Figure("overhead of a round, two nodes", overheads, "s", 0.1, reference=beside)
    yield Figure("overhead of a round, two nodes", overheads, "s", 0.2, quantile=0.9)
    lags = socket_lags(stack)
    yield Figure("log() to websocket", lags, "s", 0.15, reference="trackio 1.5 s; Determined 2 s; TensorBoard 30 s")
    yield Figure("log() to websocket", lags, "s", 0.5, quantile=0.99)


def first_metric_seconds(stack: Stack) -> float:
    """From the POST of a federated digits job until the API shows a point of a client's curve."""
    stack.wait_nodes()
    stack.get("/jobs")  # the connection is there, as a browser's would be
    started = time.monotonic()
    job_id = stack.submit(digits(rounds=3))
    while not stack.get(f"/jobs/{job_id}/series"):
        assert time.monotonic() - started < 60
        time.sleep(0.005)
    seconds = time.monotonic() - started
    stack.wait_state(job_id, "finished")
    return seconds


def round_overheads(stack: Stack, *, rounds: int) -> list[float]:
    """The overheads of a job on digits."""
    stack.wait_nodes()
    job_id = stack.submit(digits(rounds=rounds))
    stack.wait_state(job_id, "finished", seconds=120)
    return overheads_of(stack, job_id)


def overheads_of(stack: Stack, job_id: int) -> list[float]:
    """Of each round from its opening to the next one's: everything but the slowest client's training. The first is left out: nodes load data in it."""
    found = stack.items(f"/jobs/{job_id}/rounds")
    found.sort(key=lambda r: r["number"])
    overheads = []
    for this, following in pairwise(found[1:]):
        whole = datetime.fromisoformat(following["opened_at"]) - datetime.fromisoformat(this["opened_at"])
        training = max(p["seconds_training"] for p in this["participations"])
        overheads.append(whole.total_seconds() - training)
    return overheads


def socket_lags(stack: Stack, *, seconds: float = 8) -> list[float]:
    """Of every point of a training on two nodes: its arrival at a websocket less the time that log() stamped on it."""
    stack.wait_nodes()
    job_id = stack.submit(digits("distributed", nodes=2, epochs=100_000))
    wait_for("the first point", lambda: stack.get(f"/jobs/{job_id}/series"))
    url = f"{stack.url.replace('http', 'ws')}/ws/jobs/{job_id}/"
    lags: list[float] = []
    with connect(url, additional_headers={"Authorization": f"Bearer {stack.token}"}, proxy=None) as socket:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = json.loads(socket.recv(timeout=10))
            now = time.time()
            if message["type"] == "points":
                lags += [now - logged for series in message["series"] for logged in series["times"]]
    stack.post(f"/jobs/{job_id}/cancel")
    return lags

"""FedBuff on real nodes: one that hangs or dies holds up nobody, and what it was at counts when it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil

from tests.realstack import Stack, digits, wait_for


def stale_updates(stack: Stack, job_id: int) -> Iterator[dict[str, Any]]:
    for round_ in stack.get(f"/jobs/{job_id}/rounds", limit=1000)["items"]:
        for part in round_["participations"]:
            if part["counted_in"] is not None and part["counted_in"] > round_["number"]:
                yield {**part, "number": round_["number"]}


def test_a_node_that_hangs_and_one_that_dies_hold_up_nobody(stack: Stack):
    strategy = {"name": "fedbuff", "buffer": 1, "max_staleness": 100_000}
    job_id = stack.submit(digits(rounds=100_000, strategy=strategy, server_data="digits", evaluate_every=10))
    stack.wait_progress(job_id, 2)
    hung = psutil.Process(stack.pid_of("node-2")).children(recursive=True)
    for process in hung:
        process.suspend()
    try:
        before = stack.job(job_id)["progress"]["done"]
        stack.wait_progress(job_id, before + 10)
    finally:
        for process in hung:
            process.resume()
    late = wait_for("the update of the node that hung", lambda: list(stale_updates(stack, job_id)))
    assert all(part["state"] == "returned" for part in late)
    stack.kill("node-2")
    before = stack.job(job_id)["progress"]["done"]
    stack.wait_progress(job_id, before + 10)
    (curve,) = stack.get(f"/jobs/{job_id}/metrics", name="server/accuracy", points=1000)["series"]
    assert curve["source"] == "server"
    assert all(step % 10 == 0 for step in curve["steps"])
    assert stack.post(f"/jobs/{job_id}/cancel").status_code == 200

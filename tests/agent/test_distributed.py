"""`trainer.run_ranks`: ranks on two nodes meet under torch elastic, end together, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
from safetensors import safe_open

from tests.agent.conftest import AgentUnderTest, agents, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import distributed_spec
from trainer.protocol import Points, RunRanks, RunReport, StopAttempt
from trainer.spec import JobSpec
from trainer.telemetry import unpack_points

Pair = tuple[AgentUnderTest, AgentUnderTest]


@pytest.fixture(scope="module")
def pair(
    node_broker: redis.Redis, broker_url: str, shared_far_end: FarEnd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two running agents, warm, shared by this module."""
    with agents(node_broker, broker_url, shared_far_end, tmp_path_factory.mktemp("pair")) as make:
        pair = tuple(make(name, start=False, toml="slots = 4\n") for name in ("node-1", "node-2"))
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(AgentUnderTest.start, pair))
        yield pair


def send_ranks(pair: Pair, attempt_id: int, spec: JobSpec) -> None:
    for group_rank, agent in enumerate(pair):
        agent.send(RunRanks(job_id=1, attempt_id=attempt_id, spec=spec, group_rank=group_rank, num_groups=2))


def first_steps(pair: Pair, attempt_id: int) -> bool:
    return all(agent.told(Points, attempt_id=attempt_id) for agent in pair)


def test_ranks_train_together_and_leave_the_model(pair: Pair, far_end: FarEnd, attempt_id: int, tmp_path: Path) -> None:
    spec = distributed_spec(epochs=2)
    send_ranks(pair, attempt_id, spec)
    for agent in pair:
        eventually(lambda agent=agent: agent.told(RunReport, kind="finished", attempt_id=attempt_id))
        assert agent.told(RunReport, kind="started", attempt_id=attempt_id)
        assert not agent.told(RunReport, kind="failed", attempt_id=attempt_id)
        eventually(lambda agent=agent: attempt_id not in agent.heartbeats()[-1].attempts)
        assert not agent.runners(attempt_id)

    ((told_attempt, offer),) = far_end.artifacts
    assert (told_attempt, offer["name"]) == (attempt_id, "model.safetensors")
    model = tmp_path / "model.safetensors"
    model.write_bytes(far_end.blobs[offer["digest"]])
    with safe_open(model, framework="numpy") as file:
        assert JobSpec.model_validate(json.loads(file.metadata()["spec"])) == spec

    sources = {
        series.source
        for agent in pair
        for _, message, data in agent.entries
        if isinstance(message, Points) and message.attempt_id == attempt_id
        for series in unpack_points(message, data)
    }
    assert sources == {"rank 0", "rank 1"}


def test_several_ranks_on_each_node(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    send_ranks(pair, attempt_id, distributed_spec(distributed={"nodes": 2, "processes_per_node": 2, "epochs": 1}))
    for agent in pair:
        eventually(lambda agent=agent: agent.told(RunReport, kind="finished", attempt_id=attempt_id))
    assert len(far_end.artifacts) == 1


def test_a_second_delivery_is_ignored(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    spec = distributed_spec(epochs=2000)
    send_ranks(pair, attempt_id, spec)
    send_ranks(pair, attempt_id, spec)
    eventually(lambda: first_steps(pair, attempt_id))
    time.sleep(0.3)
    for agent in pair:
        assert len(agent.runners(attempt_id)) == 1
        assert not agent.told(RunReport, kind="refused", attempt_id=attempt_id)
        agent.send(StopAttempt(attempt_id=attempt_id))
    for agent in pair:
        eventually(lambda agent=agent: agent.told(RunReport, kind="released", attempt_id=attempt_id))


def test_stop_ends_ranks_that_wait_for_each_other(pair: Pair, attempt_id: int) -> None:
    send_ranks(pair, attempt_id, distributed_spec(epochs=100_000))
    eventually(lambda: first_steps(pair, attempt_id))
    pids = [pid for agent in pair for pid in agent.runners(attempt_id)]
    os.kill(pids[0], signal.SIGSTOP)  # the other rank now hangs in a collective
    started = time.monotonic()
    for agent in pair:
        agent.send(StopAttempt(attempt_id=attempt_id))
    for agent in pair:
        eventually(lambda agent=agent: agent.told(RunReport, kind="released", attempt_id=attempt_id), 5)
        assert not agent.told(RunReport, kind="failed", attempt_id=attempt_id)
    assert time.monotonic() - started < 5
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_killed_rank_is_named_first(pair: Pair, attempt_id: int) -> None:
    send_ranks(pair, attempt_id, distributed_spec(epochs=100_000))
    eventually(lambda: first_steps(pair, attempt_id))
    (victim,) = pair[1].runners(attempt_id)
    os.kill(victim, signal.SIGKILL)
    (report,) = eventually(lambda: pair[1].told(RunReport, kind="failed", attempt_id=attempt_id))
    assert report.text.startswith("node-2: Rank 1: The runner was ended by signal 9 (SIGKILL).")
    # The other node only lost its peer: it leaves the word to node-2, until the server stops the attempt.
    pair[0].send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: pair[0].told(RunReport, kind="released", attempt_id=attempt_id))
    assert not pair[0].told(RunReport, kind="failed", attempt_id=attempt_id)
    for agent in pair:
        assert not agent.runners(attempt_id)


def test_stop_before_the_others_came(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    spec = distributed_spec()
    pair[1].send(RunRanks(job_id=1, attempt_id=attempt_id, spec=spec, group_rank=1, num_groups=2))
    eventually(lambda: ("GET", f"attempts/{attempt_id}/rendezvous", "") in far_end.requests)
    started = time.monotonic()
    pair[1].send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: pair[1].told(RunReport, kind="released", attempt_id=attempt_id), 5)
    assert time.monotonic() - started < 2
    eventually(lambda: attempt_id not in pair[1].heartbeats()[-1].attempts)


def test_an_unknown_source_is_refused(pair: Pair, attempt_id: int) -> None:
    send_ranks(pair, attempt_id, distributed_spec(data={"source": "ward7"}))
    (report,) = eventually(lambda: pair[0].told(RunReport, kind="refused", attempt_id=attempt_id))
    assert "has no data source 'ward7'" in report.text


def test_the_first_step_comes_before_a_cold_start_has_imported_torch(pair: Pair, attempt_id: int) -> None:
    """From the task to the first point, beside what a new process pays for its imports alone, in the same minute."""
    started = time.time() * 1000
    send_ranks(pair, attempt_id, distributed_spec())
    eventually(lambda: first_steps(pair, attempt_id))
    first = min(message.base_time_ms for agent in pair for message in agent.told(Points, attempt_id=attempt_id))

    cold = time.time()
    subprocess.run([sys.executable, "-c", "import torch, torch.distributed, torch._dynamo"], check=True)
    assert first - started < (time.time() - cold) * 1000

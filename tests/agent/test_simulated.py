"""`trainer.run_ranks` with a start: the ranks of a simulation, whose rounds reach the server while they train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import redis

from tests.agent.conftest import AgentUnderTest, agents, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from trainer.protocol import Points, RunRanks, RunReport, StopAttempt
from trainer.simulation.messages import RoundStart
from trainer.spec import JobSpec
from trainer.telemetry import unpack_points

Pair = tuple[AgentUnderTest, AgentUnderTest]


@pytest.fixture(scope="module")
def pair(
    node_broker: redis.Redis, broker_url: str, shared_far_end: FarEnd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two running agents, warm, shared by this module."""
    with agents(node_broker, broker_url, shared_far_end, tmp_path_factory.mktemp("simulating")) as make:
        pair = tuple(make(name, start=False, toml="slots = 8\n") for name in ("node-1", "node-2"))
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(AgentUnderTest.start, pair))
        yield pair


def simulated_spec(*, nodes: int = 1, rounds: int = 3, **clients: Any) -> JobSpec:
    return federated_spec(
        federated={
            "rounds": rounds,
            "clients": {"num": nodes, "simulate": 12, "per_round": 4, "processes": 2, **clients},
        },
        training={"batch_size": 10},
    )


def send(pair: Pair, far_end: FarEnd, attempt_id: int, spec: JobSpec, **start: Any) -> None:
    assert spec.federated is not None
    weights = far_end.add_blob(weights_for(spec))
    begin = RoundStart(**{"round": 1, "last_round": spec.federated.rounds, "weights": weights, **start})
    for group_rank, agent in enumerate(pair[: spec.num_nodes]):
        agent.send(
            RunRanks(
                job_id=attempt_id,
                attempt_id=attempt_id,
                spec=spec,
                group_rank=group_rank,
                num_groups=spec.num_nodes,
                start=begin,
            )
        )


def posted(far_end: FarEnd, attempt_id: int) -> list[dict[str, Any]]:
    return [offer for told, offer in far_end.simulated if told == attempt_id]


def rounds_of(far_end: FarEnd, attempt_id: int) -> list[int]:
    return [round_["round"] for offer in posted(far_end, attempt_id) for round_ in offer["rounds"]]


@pytest.mark.parametrize("nodes", [1, 2])
def test_all_rounds_are_posted_before_the_end_is_reported(
    pair: Pair, far_end: FarEnd, attempt_id: int, nodes: int
) -> None:
    send(pair, far_end, attempt_id, simulated_spec(nodes=nodes))
    for agent in pair[:nodes]:
        eventually(lambda agent=agent: agent.told(RunReport, kind="finished", attempt_id=attempt_id))
        assert not agent.told(RunReport, kind="failed", attempt_id=attempt_id)
        assert not agent.runners(attempt_id)
    assert rounds_of(far_end, attempt_id) == [1, 2, 3]
    assert not far_end.artifacts
    files = {path.name for path in (pair[0].home / "runs" / str(attempt_id)).iterdir()}
    assert files == {"rows.safetensors", "recorded"}
    sources = {
        series.source
        for _, message, data in pair[0].entries
        if isinstance(message, Points) and message.attempt_id == attempt_id
        for series in unpack_points(message, data)
    }
    assert "aggregate" in sources


def test_one_node_and_two_give_the_same_weights(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    for nodes in (1, 2):
        send(pair, far_end, attempt_id + nodes * 1_000_000, simulated_spec(nodes=nodes))
        eventually(
            lambda nodes=nodes: pair[0].told(RunReport, kind="finished", attempt_id=attempt_id + nodes * 1_000_000)
        )
    one, two = (posted(far_end, attempt_id + nodes * 1_000_000)[-1]["weights"] for nodes in (1, 2))
    assert one == two


def test_rounds_that_the_server_does_not_take_end_the_ranks(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    far_end.verdict = {"accepted": False, "reason": "The attempt is over."}
    send(pair, far_end, attempt_id, simulated_spec(rounds=100_000))
    (report,) = eventually(lambda: pair[0].told(RunReport, kind="failed", attempt_id=attempt_id))
    assert report.text == "node-1: The rounds could not be given to the server: The attempt is over."
    eventually(lambda: not pair[0].runners(attempt_id))


def test_stop_leaves_nothing(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    send(pair, far_end, attempt_id, simulated_spec(nodes=2, rounds=100_000))
    eventually(lambda: posted(far_end, attempt_id))
    pids = [pid for agent in pair for pid in agent.runners(attempt_id)]
    assert len(pids) == 4
    for agent in pair:
        agent.send(StopAttempt(attempt_id=attempt_id))
    for agent in pair:
        eventually(lambda agent=agent: agent.told(RunReport, kind="released", attempt_id=attempt_id), 10)
        assert not agent.told(RunReport, kind="failed", attempt_id=attempt_id)
        eventually(lambda agent=agent: attempt_id not in agent.heartbeats()[-1].attempts)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_killed_rank_is_named_and_what_was_closed_is_posted(pair: Pair, far_end: FarEnd, attempt_id: int) -> None:
    send(pair, far_end, attempt_id, simulated_spec(rounds=100_000))
    eventually(lambda: posted(far_end, attempt_id))
    os.kill(pair[0].runners(attempt_id)[-1], signal.SIGKILL)
    (report,) = eventually(lambda: pair[0].told(RunReport, kind="failed", attempt_id=attempt_id))
    assert "The runner was ended by signal 9 (SIGKILL)." in report.text
    rounds = rounds_of(far_end, attempt_id)
    assert rounds == list(range(1, len(rounds) + 1))
    eventually(lambda: not pair[0].runners(attempt_id))


def test_the_first_round_opens_before_a_cold_start_has_imported_torch(
    pair: Pair, far_end: FarEnd, attempt_id: int
) -> None:
    """From the task to the first round, beside what new processes pay for their imports alone, in the same minute."""
    started = time.time()
    send(pair, far_end, attempt_id, simulated_spec(rounds=1))
    eventually(lambda: posted(far_end, attempt_id))
    first = posted(far_end, attempt_id)[0]["rounds"][0]["opened_ms"] / 1000 - started

    code = "import torch, torch.distributed, torch._dynamo, sklearn.datasets, trainer.simulation.rank"
    cold = time.time()
    for process in [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]:
        assert process.wait() == 0
    assert first < time.time() - cold

"""`trainer.train_round`: a client trains in a runner that stays, and its update arrives whatever happens on the way."""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np
import psutil
from safetensors.numpy import load

from tests.agent.conftest import CREDENTIALS, AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from trainer.protocol import Logs, Points, RunReport, StopAttempt, TrainRound
from trainer.telemetry import unpack_points


def a_round(far_end: FarEnd, attempt_id: int, number: int = 1, **changes) -> TrainRound:
    spec = changes.pop("spec", None) or federated_spec()
    weights = changes.pop("weights", None) or far_end.add_blob(weights_for(spec))
    return TrainRound(
        job_id=1,
        attempt_id=attempt_id,
        round=number,
        spec=spec,
        client=0,
        num_clients=2,
        weights=weights,
        **changes,
    )


def test_a_round_is_trained_and_delivered(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    message = a_round(far_end, attempt_id)
    agent.send(message)
    eventually(lambda: far_end.updates)
    (told_attempt, number, offer) = far_end.updates[0]
    assert (told_attempt, number) == (attempt_id, 1)
    assert 0 < offer["num_examples"] < 1797
    assert offer["num_steps"] == math.ceil(offer["num_examples"] / 32)
    assert offer["loss_before"] is None
    assert offer["bytes_down"] in (0, message.weights.size_bytes)  # 0: another test has fetched these weights before
    update = load(far_end.blobs[offer["digest"]])
    assert all(np.isfinite(tensor).all() for tensor in update.values())
    assert any(np.abs(tensor).sum() > 0 for tensor in update.values())
    eventually(lambda: agent.told(RunReport, kind="started", attempt_id=attempt_id, round=1))
    packs = eventually(
        lambda: [(m, data) for _, m, data in agent.entries if isinstance(m, Points) and m.attempt_id == attempt_id]
    )
    series = {s.name: s for s in unpack_points(*packs[0])}
    assert series["train/loss"].source == "node-1"
    assert list(series["train/loss"].steps) == [1]


def test_the_runner_stays_from_round_to_round(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    agent.send(a_round(far_end, attempt_id, 1))
    eventually(lambda: len(far_end.updates) == 1)
    first = agent.runners(attempt_id)
    agent.send(a_round(far_end, attempt_id, 2))
    eventually(lambda: len(far_end.updates) == 2)
    assert agent.runners(attempt_id) == first
    assert len(first) == 1


def test_a_runner_sees_no_credential(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    assert agent.process is not None
    assert CREDENTIALS.items() <= psutil.Process(agent.process.pid).environ().items()
    agent.send(a_round(far_end, attempt_id))
    eventually(lambda: far_end.updates)
    (pid,) = agent.runners(attempt_id)
    names = set(psutil.Process(pid).environ())
    assert not names & CREDENTIALS.keys()
    assert names >= {"PATH", "OMP_NUM_THREADS"}


def test_a_second_delivery_and_an_older_round_are_ignored(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    slow = federated_spec(federated={"rounds": 3, "local_epochs": 30, "clients": {"num": 2}})
    message = a_round(far_end, attempt_id, 2, spec=slow)
    agent.send(message)
    agent.send(message)
    agent.send(a_round(far_end, attempt_id, 1, spec=slow))
    eventually(lambda: far_end.updates)
    time.sleep(0.3)
    assert [(a, n) for a, n, _ in far_end.updates] == [(attempt_id, 2)]


def test_a_newer_round_takes_over(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    endless = federated_spec(federated={"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}})
    agent.send(a_round(far_end, attempt_id, 1, spec=endless))
    eventually(lambda: agent.told(Points, attempt_id=attempt_id))
    agent.send(a_round(far_end, attempt_id, 2))
    eventually(lambda: far_end.updates)
    assert far_end.updates[0][1] == 2
    assert not agent.told(RunReport, kind="failed", attempt_id=attempt_id)


def test_a_killed_runner_is_a_failed_round_with_a_sentence(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    endless = federated_spec(federated={"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}})
    agent.send(a_round(far_end, attempt_id, 1, spec=endless))
    eventually(lambda: agent.told(Points, attempt_id=attempt_id))
    (pid,) = agent.runners(attempt_id)
    os.kill(pid, signal.SIGKILL)
    (report,) = eventually(lambda: agent.told(RunReport, kind="failed", attempt_id=attempt_id))
    assert report.round == 1
    assert report.text.startswith("Round 1 on node-1 failed: The runner was ended by signal 9 (SIGKILL).")
    eventually(lambda: attempt_id not in agent.heartbeats()[-1].attempts)
    lines = [line for logs in agent.told(Logs, attempt_id=attempt_id) for line in logs.lines]
    assert any("signal 9" in line.text and line.level == "error" for line in lines)
    # The next round starts a new runner.
    agent.send(a_round(far_end, attempt_id, 2))
    eventually(lambda: far_end.updates)


def test_stop_ends_a_runner_in_time_and_says_released(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    endless = federated_spec(federated={"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}})
    agent.send(a_round(far_end, attempt_id, 1, spec=endless))
    eventually(lambda: agent.told(Points, attempt_id=attempt_id))
    (pid,) = agent.runners(attempt_id)
    started = time.monotonic()
    agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: agent.told(RunReport, kind="released", attempt_id=attempt_id), 5)
    assert time.monotonic() - started < 5
    assert not psutil.pid_exists(pid)
    assert not agent.told(RunReport, kind="failed", attempt_id=attempt_id)
    # A delivery that was overtaken by the stop starts nothing.
    agent.send(a_round(far_end, attempt_id, 2))
    time.sleep(0.5)
    assert not agent.runners(attempt_id)
    assert not far_end.updates


def test_stop_ends_a_runner_that_ignores_sigterm(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    endless = federated_spec(federated={"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}})
    agent.send(a_round(far_end, attempt_id, 1, spec=endless))
    eventually(lambda: agent.told(Points, attempt_id=attempt_id))
    (pid,) = agent.runners(attempt_id)
    os.kill(pid, signal.SIGSTOP)  # deaf to SIGTERM
    started = time.monotonic()
    agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: agent.told(RunReport, kind="released", attempt_id=attempt_id), 5)
    assert time.monotonic() - started < 5
    assert not psutil.pid_exists(pid)


def test_stop_of_what_does_not_run_is_released_too(agent: AgentUnderTest, attempt_id: int) -> None:
    agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: agent.told(RunReport, kind="released", attempt_id=attempt_id))


def test_an_unknown_source_is_refused(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    spec = federated_spec(data={"source": "ward7"})
    agent.send(a_round(far_end, attempt_id, spec=spec, weights=far_end.add_blob(b"unused")))
    (report,) = eventually(lambda: agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert report.text.startswith("node-1 has no data source 'ward7'. It has breast_cancer, diabetes, digits;")
    assert report.round == 1


def test_a_job_that_does_not_fit_is_refused(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    spec = federated_spec(data={"source": "diabetes"}, model={"name": "cnn"})
    agent.send(a_round(far_end, attempt_id, spec=spec, weights=far_end.add_blob(b"unused")))
    (report,) = eventually(lambda: agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert "A cnn needs images" in report.text


def test_a_refused_update_ends_the_runner(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    far_end.verdict = {"accepted": False, "reason": "The attempt is over."}
    agent.send(a_round(far_end, attempt_id))
    eventually(lambda: far_end.updates)
    eventually(lambda: attempt_id not in agent.heartbeats()[-1].attempts)
    assert not agent.runners(attempt_id)


def test_an_update_survives_a_broken_connection(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    far_end.break_put_after = 1000
    agent.send(a_round(far_end, attempt_id))
    eventually(lambda: far_end.updates)
    puts = [(method, span) for method, path, span in far_end.requests if path.startswith("blobs/") and method != "GET"]
    assert [method for method, _ in puts] == ["PUT", "HEAD", "PUT"]
    assert puts[2][1].startswith("bytes 1000-")


def test_weights_survive_a_broken_connection(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    far_end.break_get_after = 1000
    agent.send(a_round(far_end, attempt_id, spec=federated_spec(seed=5)))  # weights that no other test has fetched
    eventually(lambda: far_end.updates)
    gets = [span for method, path, span in far_end.requests if path.startswith("blobs/") and method == "GET"]
    assert gets == ["", "bytes=1000-"]


def test_a_full_node_refuses_and_an_idle_runner_makes_way(make_agent, far_end: FarEnd) -> None:
    agent = make_agent(toml="slots = 1\n")
    agent.send(a_round(far_end, 1))
    eventually(lambda: len(far_end.updates) == 1)
    time.sleep(0.3)  # the verdict travels
    # Attempt 1 waits for its next round: attempt 2 may have the slot.
    endless = federated_spec(federated={"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}})
    agent.send(a_round(far_end, 2, spec=endless))
    eventually(lambda: agent.told(Points, attempt_id=2))
    eventually(lambda: agent.heartbeats()[-1].attempts == [2])
    agent.send(a_round(far_end, 3))
    (report,) = eventually(lambda: agent.told(RunReport, kind="refused", attempt_id=3))
    assert report.text.startswith("node-1 lends 1 slots and the job needs 1 (attempts at work: 2)")


def test_a_diverged_loss_arrives_as_what_it_is(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    spec = federated_spec(
        data={"source": "diabetes"},
        training={"optimizer": {"name": "sgd", "lr": 100}},
        federated={"rounds": 3, "local_epochs": 20, "clients": {"num": 2}},
    )
    agent.send(a_round(far_end, attempt_id, spec=spec))
    eventually(lambda: far_end.updates)
    assert not math.isfinite(far_end.updates[0][2]["metrics"]["train/loss"])

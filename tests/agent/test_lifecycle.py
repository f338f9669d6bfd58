"""An agent's start and end, in good order and not: nothing is orphaned, nothing is told twice, nobody shares a home."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import distributed_spec, federated_spec, weights_for
from trainer.agent.home import Home
from trainer.agent.sweep import note_process, sweep_runs
from trainer.protocol import Points, RunRanks, StopAttempt, TrainRound

MakeAgent = Callable[..., AgentUnderTest]


def start_endless_round(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> int:
    """Return the pid of a runner that trains for minutes."""
    spec = federated_spec(federated={"rounds": 3, "local_epochs": 1000, "clients": {"num": 2}})
    weights = far_end.add_blob(weights_for(spec))
    agent.send(
        TrainRound(job_id=1, attempt_id=attempt_id, round=1, spec=spec, client=0, num_clients=2, weights=weights)
    )
    eventually(lambda: agent.told(Points, attempt_id=attempt_id))
    (pid,) = agent.runners(attempt_id)
    return pid


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. A zombie only waits for this machine's first process to look at it."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_killed_agent_leaves_no_orphan(make_agent: MakeAgent, far_end: FarEnd, attempt_id: int) -> None:
    agent = make_agent()
    start_endless_round(agent, far_end, attempt_id)
    agent.send(
        RunRanks(job_id=2, attempt_id=attempt_id + 1000, spec=distributed_spec(nodes=1, epochs=10**5), group_rank=0, num_groups=1)
    )  # fmt: skip
    eventually(lambda: agent.told(Points, attempt_id=attempt_id + 1000))
    family = agent.family
    assert len(family) >= 3  # the forkserver and two runners
    agent.kill()
    eventually(lambda: not living(family), 2)


def test_an_agent_that_ends_takes_everything_along_in_time(
    make_agent: MakeAgent, far_end: FarEnd, attempt_id: int
) -> None:
    agent = make_agent()
    pid = start_endless_round(agent, far_end, attempt_id)
    os.kill(pid, signal.SIGSTOP)  # deaf to SIGTERM
    family = agent.family
    assert agent.stop() < 5
    eventually(lambda: not living(family), 1)
    assert agent.heartbeats()[-1].going_away


def test_numbers_go_on_after_a_restart(make_agent: MakeAgent, far_end: FarEnd, attempt_id: int) -> None:
    agent = make_agent(start=False)
    agent.start(warm=False)
    first_boot = agent.heartbeats()[-1].boot_id
    agent.kill()
    last = agent.entries[-1][0]
    agent.start(warm=False)
    eventually(lambda: agent.heartbeats()[-1].boot_id != first_boot)
    ids = [tuple(map(int, entry_id.split("-"))) for entry_id, _, _ in agent.entries]
    assert ids == sorted(set(ids))
    assert ids[-1] > tuple(map(int, last.split("-")))
    agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: "released" in [getattr(m, "kind", "") for _, m, _ in agent.entries])


def test_two_agents_cannot_share_a_home(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False)
    command = [sys.executable, "-m", "trainer.agent", "--home", str(agent.home)]
    with (agent.home / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr.strip().startswith(f"trainmaster: Another agent is running on {agent.home}: stop it first")


def test_a_start_ends_what_an_earlier_agent_left(tmp_path: Path) -> None:
    """The watchdog may die with its process; the note stays."""
    runs = Home(tmp_path / "home").runs
    folder = runs / "7"
    folder.mkdir()
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    note_process(folder, left.pid)
    # The number of this note was given anew to a process of somebody else.
    (folder / f"pid-{other.pid}").write_text("1.0")
    assert sweep_runs(runs) == 1
    assert left.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()
    assert list(runs.iterdir()) == []


def test_the_agent_needs_no_django() -> None:
    """Neither is importable here; kombu takes a look at Django by itself and does without."""
    code = (
        "import sys; sys.modules['django'] = sys.modules['webapp'] = None\n"
        "import trainer.agent.__main__, trainer.agent.elastic, trainer.agent.child, trainer.commands.node\n"
        "import trainer.federated.client, trainer.distributed.ddp\n"
        "print('fine')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "fine"


def test_the_agent_waits_without_torch() -> None:
    code = "import sys, trainer.agent.__main__\nprint('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_broker_may_restart(make_agent: MakeAgent, attempt_id: int) -> None:
    """Connections cut: what was told meanwhile arrives, and tasks are taken again."""
    agent = make_agent(start=False)
    agent.start(warm=False)
    broker = agent._broker
    broker.execute_command("CLIENT", "KILL", "USER", f"node-{agent.node_id}")
    started = time.monotonic()
    agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: "released" in [getattr(m, "kind", "") for _, m, _ in agent.entries])
    assert time.monotonic() - started < 10

"""`make up` itself: the first run, Ctrl-C, a killed supervisor, the second start, and what it says when it cannot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.realstack import ROOT, Stack, digits, wait_for


@pytest.fixture
def own_stack(tmp_path) -> Iterator[Stack]:
    """A stack of this test alone, beside the session's."""
    stack = Stack(tmp_path / "home")
    yield stack
    if stack.is_running():
        stack.stop()
    stack.wait_no_process()


def demo_jobs(stack: Stack) -> dict[str, dict[str, Any]]:
    return {job["mode"]: stack.job(job["id"]) for job in stack.get("/jobs")["items"]}


def test_the_first_run_and_the_second(own_stack: Stack):
    stack = own_stack
    stack.start()
    wait_for("the greeting", lambda: "is ready" in stack.output)
    assert stack.url in stack.output
    assert stack.admin_password in stack.output
    password_file = stack.home / "secrets" / "admin-password"
    assert password_file.stat().st_mode & 0o777 == 0o600

    # The first page shows curves that move.
    assert set(demo_jobs(stack)) == {"federated", "distributed"}
    federated = demo_jobs(stack)["federated"]["id"]
    stack.wait_progress(federated, 3)
    for job in demo_jobs(stack).values():
        wait_for("points", partial(stack.get, f"/jobs/{job['id']}/series"))

    before = demo_jobs(stack)["federated"]["progress"]["done"]
    assert stack.stop(signal_number=signal.SIGINT) < 10
    stack.wait_no_process(seconds=1)

    stack.start()
    assert stack.output.count(stack.admin_password) == 1  # shown once
    assert len(demo_jobs(stack)) == 2  # and submitted once
    stack.wait_progress(federated, before + 3)
    stack.cancel_all()
    assert stack.stop() < 10
    stack.wait_no_process(seconds=1)


def test_a_killed_supervisor_leaves_nobody_and_the_next_start_goes_on(own_stack: Stack):
    stack = own_stack
    stack.start()
    stack.cancel_all()
    job_id = stack.submit(digits(rounds=150))
    stack.wait_progress(job_id, 5)
    stack.kill_supervisor()
    stack.wait_no_process(seconds=5)
    stack.start()
    assert stack.wait_state(job_id, "finished", seconds=120)["progress"]["done"] == 150


def test_a_stop_in_the_midst_of_the_start(own_stack: Stack):
    """The nodes' forkservers import torch for seconds, and notice little meanwhile."""
    own_stack.start()
    assert own_stack.stop() < 10
    own_stack.wait_no_process(seconds=2)


def up(tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `manage.py up` where it cannot start."""
    clean = Stack(tmp_path / "home").environment
    command = [sys.executable, str(ROOT / "manage.py"), "up"]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False)


def is_one_sentence(result: subprocess.CompletedProcess[str]) -> bool:
    return result.returncode == 1 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_a_taken_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = up(tmp_path, PORT=str(port))
    assert is_one_sentence(result)
    assert f"Port {port} is taken on 127.0.0.1: choose another one, such as 'make up PORT={port + 1}'." in result.stderr


def test_a_home_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    result = up(tmp_path, TRAINMASTER_HOME=str(tmp_path / "file"))
    assert is_one_sentence(result)
    assert "choose another folder with TRAINMASTER_HOME" in result.stderr


@pytest.mark.skipif(not os.path.exists("/proc/sys"), reason="needs a file system that nobody may write to")
def test_a_home_that_nobody_may_write(tmp_path):
    result = up(tmp_path, TRAINMASTER_HOME="/proc/sys/home")
    assert is_one_sentence(result)
    assert "/proc/sys/home cannot be written" in result.stderr


@pytest.mark.parametrize(("name", "value"), [("PORT", "abc"), ("PORT", "70000"), ("NODES", "-1"), ("NODES", "two")])
def test_a_number_that_is_none(tmp_path, name: str, value: str):
    result = up(tmp_path, **{name: value})
    assert is_one_sentence(result)
    assert f"{name}={value} is no number" in result.stderr


def test_a_database_that_is_away(tmp_path):
    result = up(tmp_path, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert is_one_sentence(result)
    assert "DATABASE_URL" in result.stderr


def test_a_home_that_is_in_use(tmp_path):
    first = Stack(tmp_path / "home", num_nodes=0)
    from webapp.stack.home import lock_home, prepare_home

    lock_home(prepare_home(first.home))
    result = up(tmp_path)
    assert is_one_sentence(result)
    assert f"Trainmaster runs in {first.home} already" in result.stderr

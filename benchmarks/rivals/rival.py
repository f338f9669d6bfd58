"""What running any rival needs: its processes, its result, and the memory that its server takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.memory import PeakMemory
from tests.realstack import ROOT


@dataclass(frozen=True)
class Run:
    """What came of an exercise."""

    seconds: float
    """From the submission to the end of the last round."""
    round_seconds: list[float]
    accuracies: list[float | None]
    """On the test rows, after each round."""
    server_bytes: int
    """Peak memory of the server's processes."""


class Processes:
    """The processes of a rival, each with its output in a file of its name."""

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.variables = variables
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        leash = [sys.executable, str(ROOT / "webapp" / "stack" / "leash.py"), str(os.getpid())]  # it ends with us
        with open(self.home / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                [*leash, *command],
                env=self.variables,
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pid_of(self, name: str) -> int:
        return self._running[name].pid

    def wait_port(self, port: int, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, f"Nobody listens on port {port}: {self.logs()}"
                time.sleep(0.1)

    def wait_line(self, name: str, text: str, seconds: float = 90) -> None:
        """Wait until a process has written `text`."""
        deadline = time.monotonic() + seconds
        while text not in (self.home / f"{name}.log").read_text(errors="replace"):
            assert time.monotonic() < deadline, f"{name} did not say '{text}': {self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.home.glob("*.log")
        )

    def stop(self) -> None:
        """End all of them and what they started, as their sessions know it."""
        found: list[psutil.Process] = []
        for process in self._running.values():
            if psutil.pid_exists(process.pid):
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
        for one in found:
            if one.is_running():
                one.terminate()
        _, alive = psutil.wait_procs(found, timeout=5)
        for one in alive:
            one.kill()
        for popen in self._running.values():
            popen.wait(timeout=10)


def finish(processes: Processes, exercise: Path, submit: Sequence[str], *, seconds: float) -> Run:
    """Run the command that submits the exercise, wait until its result is there, and return it."""
    result = exercise / "result.json"
    result.unlink(missing_ok=True)
    with PeakMemory(processes.pid_of("server")) as memory:
        started = time.time()
        answer = subprocess.run(
            submit, env=processes.variables, cwd=processes.home, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        while not result.exists():
            assert time.time() < started + seconds, f"No result after {seconds:.0f} s: {processes.logs()}"
            time.sleep(0.02)
    told = json.loads(result.read_text())
    times = told["times"]
    rounds = [after - before for before, after in pairwise(times)]
    return Run(times[-1] - started, rounds, told["accuracies"], memory.peak_bytes)

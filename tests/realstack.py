"""The real thing: `manage.py up` with its own home and ports, for the tests in tests/stack and tests/browser.

One stack serves a whole test process, and `pytest_collection_modifyitems` sends all tests that use it to the same one.
It is held on a leash: a killed pytest leaves no process behind.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from tests.ports import free_port

logging.getLogger("httpx").setLevel(logging.WARNING)  # hundreds of looks at a job would bury what a failure says

ROOT = Path(__file__).resolve().parent.parent
ENDED = ("finished", "failed", "cancelled")
T = TypeVar("T")


def digits(mode: str = "federated", **section: Any) -> dict[str, Any]:
    """A small job on digits; `section` holds options of its mode."""
    return {
        "name": f"digits {mode}",
        "mode": mode,
        "model": {"name": "mlp", "options": {"hidden": [64]}},
        "data": {"source": "digits"},
        mode: section,
    }


def wait_for(what: str, look: Callable[[], T | None], *, seconds: float = 60) -> T:
    """Look until there is something true; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"After {seconds:.0f} s still waiting for {what}."
        time.sleep(0.1)
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Stack:
    """One running `manage.py up`. Processes have the names of webapp/stack/programs.py: web, conductor, node-1 ..."""

    def __init__(self, home: Path, *, num_nodes: int = 2, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.port = free_port()
        self.num_nodes = num_nodes
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = self._environment() | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    # --- the whole stack ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it as `make up` does, and wait until it answers and its nodes are online."""
        up = [sys.executable, str(ROOT / "manage.py"), "up"]
        leash = [sys.executable, "-m", "webapp.stack.leash", str(os.getpid())]
        with open(self.home.with_suffix(".out"), "ab") as output:
            self._process = subprocess.Popen(
                [*leash, *up], cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        self.wait_healthy()
        self.wait_nodes(idle=False)

    def stop(self, *, signal_number: int = signal.SIGTERM) -> float:
        """Send the signal, wait for the end, and return the seconds that it took."""
        assert self._process
        self.processes()  # remember them
        if api := self.__dict__.pop("api", None):
            api.close()  # made anew at the next use
        started = time.monotonic()
        self._process.send_signal(signal_number)
        self._process.wait(timeout=20)
        return time.monotonic() - started

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """What the terminal of `make up` would show."""
        return self.home.with_suffix(".out").read_text()

    def wait_healthy(self, seconds: float = 60) -> None:
        def healthy() -> bool:
            assert self.is_running(), f"The stack ended: {self.output}"
            try:
                return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        wait_for(f"{self.url}/healthz", healthy, seconds=seconds)

    def wait_nodes(self, *, idle: bool = True, seconds: float = 60) -> None:
        """Wait until every local node is online, and works on nothing."""

        def ready() -> bool:
            online = [node for node in self.nodes().values() if node["state"] == "online"]
            return len(online) == self.num_nodes and not (idle and any(node["running_attempts"] for node in online))

        wait_for(f"{self.num_nodes} {'idle' if idle else 'online'} nodes", ready, seconds=seconds)

    # --- its processes ------------------------------------------------------------------------------------------------

    def pid_of(self, name: str) -> int:
        """The process id of a supervised process, once it runs. The supervisor's log has it: Valkey hides its environment."""

        def find() -> int:
            spawned = re.findall(rf"spawned: '{name}' with pid (\d+)", self.log_of("supervisord"))
            return int(spawned[-1]) if spawned and psutil.pid_exists(int(spawned[-1])) else 0

        return wait_for(f"the process {name}", find, seconds=15)

    def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone. The supervisor starts it again."""
        self.processes()  # remember them
        process = psutil.Process(self.pid_of(name))
        process.kill()
        wait_for(f"the end of {name}", lambda: not is_alive(process), seconds=5)
        wait_for(f"another {name}", lambda: self.pid_of(name) != process.pid, seconds=15)

    def kill_supervisor(self) -> None:
        self.stop(signal_number=signal.SIGKILL)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this stack: those that know its home, and every descendant that was ever seen.

        A runner's environment is scrubbed, so that an orphan of it is known only because it was seen before.
        """
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), *process.environ().values(), process.cwd()]
                if process.pid != os.getpid() and any(str(self.home) in word for word in words):
                    self._seen |= {process, *process.children(recursive=True)}
            except psutil.Error:
                continue  # it ended while we looked
        return [process for process in self._seen if is_alive(process)]

    def wait_no_process(self, seconds: float = 10) -> None:
        wait_for(f"the end of {self.processes()}", lambda: not self.processes(), seconds=seconds)

    def log_of(self, name: str) -> str:
        return (self.home / "logs" / f"{name}.log").read_text(errors="replace")

    # --- its API ------------------------------------------------------------------------------------------------------

    @property
    def admin_password(self) -> str:
        return (self.home / "secrets" / "admin-password").read_text().strip()

    @cached_property
    def token(self) -> str:
        command = [sys.executable, str(ROOT / "manage.py"), "createtoken", "admin"]
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    @cached_property
    def api(self) -> httpx.Client:
        """A client of /api/v1/ as the administrator."""
        return httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=20,
            transport=httpx.HTTPTransport(verify=False),  # plain HTTP: no certificates to load
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET with patience: a web process that restarts just now is asked again."""

        def ask() -> httpx.Response | None:
            try:
                return self.api.get(path, params=params)
            except httpx.TransportError:
                return None

        answer = wait_for(f"an answer to {path}", ask, seconds=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def items(self, path: str) -> list[dict[str, Any]]:
        """GET a list, whole."""
        page = self.get(path)
        items: list[dict[str, Any]] = page["items"]
        while len(items) < page["total"]:
            items += self.get(path, offset=len(items))["items"]
        return items

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.api.post(path, json=body)

    def submit(self, spec: dict[str, Any]) -> int:
        answer = self.post("/jobs", spec)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def job(self, job_id: int) -> dict[str, Any]:
        return self.get(f"/jobs/{job_id}")  # type: ignore[no-any-return]

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in self.get("/nodes")}

    def wait_state(self, job_id: int, *states: str, seconds: float = 60) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["state"] in states or job["state"] not in ENDED, f"{job['state']}: {job['state_reason']}"
            return job if job["state"] in states else None

        return wait_for(f"job {job_id} to be {' or '.join(states)}", reached, seconds=seconds)

    def wait_progress(self, job_id: int, done: int, seconds: float = 120) -> dict[str, Any]:
        """Wait until a federated job has closed `done` rounds."""

        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["state"] not in ENDED, f"{job['state']}: {job['state_reason']}"
            return job if job["progress"]["done"] >= done else None

        return wait_for(f"job {job_id} to have done {done}", reached, seconds=seconds)

    def cancel_all(self) -> None:
        for job in self.get("/jobs")["items"]:
            if job["state"] not in ENDED:
                self.post(f"/jobs/{job['id']}/cancel")

    def _environment(self) -> dict[str, str]:
        """What the shell of a user would hand over: nothing of the tests' own settings."""
        ours = ("TRAINMASTER_", "DATABASE_URL", "BROKER_URL", "NODE_BROKER_URL", "DJANGO_", "PYTEST_", "COV_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return clean | {
            "TRAINMASTER_HOME": str(self.home),
            "PORT": str(self.port),
            "NODES": str(self.num_nodes),
            "PYTHONPATH": str(ROOT),
        }


@pytest.fixture(scope="session")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The one stack of this test process; its two demo jobs are cancelled."""
    stack = Stack(tmp_path_factory.mktemp("stack") / "home")
    try:
        stack.start()
        wait_for("the greeting", lambda: "is ready" in stack.output)
        stack.cancel_all()
        yield stack
    finally:
        if stack.is_running():
            stack.stop()
        stack.wait_no_process()


@pytest.fixture
def stack(running_stack: Stack) -> Iterator[Stack]:
    """The running stack, all its nodes online and idle. Jobs that a test leaves are cancelled."""
    running_stack.wait_nodes()
    yield running_stack
    if running_stack.is_running():
        running_stack.wait_healthy()
        running_stack.cancel_all()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs a stack, and ask for one worker to have it. Where xdist does not group, each worker starts its own."""
    if {"running_stack", "own_stack"} & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.stack)
        item.add_marker(pytest.mark.xdist_group("stack"))

"""Flower at an exercise: its deployment engine (a SuperLink and a SuperNode for each client), or its simulation engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rivals.environment import environment_of, variables_for
from benchmarks.rivals.rival import Processes, Run, finish
from tests.ports import free_port

FOLDER = Path(__file__).parent


@contextmanager
def deployment(num_nodes: int, *, poll_seconds: float | None = None) -> Iterator[FlowerServer]:
    """Start the server and the nodes; they are warm when this returns. poll_seconds: how often a process looks for tasks (Flower's own: 1)."""
    with tempfile.TemporaryDirectory(prefix="flower-") as home:
        server = FlowerServer(Path(home), poll_seconds)
        try:
            server.start()
            for number in range(num_nodes):
                server.start_node(number, num_nodes)
            yield server
        finally:
            server.processes.stop()


@contextmanager
def simulation(num_clients: int, *, processes: int) -> Iterator[FlowerServer]:
    """Start the server that runs simulations, with so many clients at a time."""
    with tempfile.TemporaryDirectory(prefix="flower-") as home:
        server = FlowerServer(Path(home), None)
        server.options = (
            f"\n[superlink.bench.options]\nnum-supernodes = {num_clients}\n"
            "backend.client-resources.num-cpus = 1\nbackend.client-resources.num-gpus = 0.0\n"
            f"backend.init-args.num-cpus = {processes}\n"
        )
        try:
            server.start("--simulation")
            yield server
        finally:
            server.processes.stop()


class FlowerServer:
    """A SuperLink in a home of its own."""

    def __init__(self, home: Path, poll_seconds: float | None) -> None:
        self.home = home
        self.binaries = environment_of("flower")
        variables = variables_for(self.binaries, home)
        variables |= {"FLWR_HOME": str(home / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        if poll_seconds is not None:
            variables["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(poll_seconds)
        self.processes = Processes(home, variables)
        self.port = free_port()
        self.options = ""

    def start(self, *arguments: str) -> None:
        words = ["--insecure", "--port", str(self.port), "--disable-runtime-dependency-installation", *arguments]
        self.processes.start("server", str(self.binaries / "flower-superlink"), *words)
        self.processes.wait_port(self.port)

    def start_node(self, number: int, num_nodes: int) -> None:
        port = free_port()
        where = ["--insecure", "--superlink", f"127.0.0.1:{self.port}", "--port", str(port)]
        config = ["--node-config", f"partition-id={number} num-partitions={num_nodes}"]
        self.processes.start(f"node-{number}", str(self.binaries / "flower-supernode"), *where, *config)
        self.processes.wait_port(port)

    def run(self, exercise: Path, *, evaluate: bool = False, seconds: float = 300) -> Run:
        """Submit the exercise by `flwr run` and wait for its result. evaluate: the clients measure each round's weights as well."""
        app = self.home / "app"
        shutil.copytree(FOLDER / "flower_app", app / "flower_app", dirs_exist_ok=True)
        shutil.copy(FOLDER / "exercise.py", app / "flower_app")
        (app / "flower_app" / "pyproject.toml").replace(app / "pyproject.toml")
        config = self.home / "flwr" / "config.toml"
        config.parent.mkdir(exist_ok=True)
        address = (
            f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        config.write_text(address + self.options)
        options = f'folder="{exercise}" evaluate={1.0 if evaluate else 0.0}'
        submit = [str(self.binaries / "flwr"), "run", str(app), "bench", "--run-config", options]
        return finish(self.processes, exercise, submit, seconds=seconds)

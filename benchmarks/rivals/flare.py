"""NVIDIA FLARE at an exercise: its proof-of-concept deployment, a server and a process for each site."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rivals.environment import environment_of, variables_for
from benchmarks.rivals.rival import Processes, Run, finish

FOLDER = Path(__file__).parent
PORT = 8002
"""FLARE's own: its proof of concept knows no other."""


@contextmanager
def deployment(num_nodes: int) -> Iterator[FlareServer]:
    """Start the server and the sites; they are warm when this returns."""
    with tempfile.TemporaryDirectory(prefix="flare-") as home:
        server = FlareServer(Path(home))
        try:
            server.start(num_nodes)
            yield server
        finally:
            server.processes.stop()


class FlareServer:
    """A proof of concept in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.binaries = environment_of("nvflare")
        variables = variables_for(self.binaries, home)
        variables |= {"NVFLARE_POC_WORKSPACE": str(home / "poc"), "PYTHONPATH": str(FOLDER)}
        self.processes = Processes(home, variables)
        self._kits = home / "poc" / "example_project" / "prod_00"

    def start(self, num_nodes: int) -> None:
        prepare = [str(self.binaries / "nvflare"), "poc", "prepare", "-n", str(num_nodes)]
        subprocess.run(prepare, env=self.processes.variables, check=True, capture_output=True)
        # The start script itself leaves its processes to themselves; this is what it calls.
        for site in ("server", *(f"site-{number + 1}" for number in range(num_nodes))):
            self.processes.start(site, "bash", str(self._kits / site / "startup" / "sub_start.sh"), "--once")
            if site == "server":
                self.processes.wait_port(PORT)
        for number in range(num_nodes):
            self.processes.wait_line(f"site-{number + 1}", "Successfully registered")

    def run(self, exercise: Path, *, seconds: float = 300) -> Run:
        """Submit the exercise by FLARE's recipe and wait for its result."""
        admin = self._kits / "admin@nvidia.com"
        python = str(self.binaries / "python")
        submit = [python, str(FOLDER / "flare_app" / "submit.py"), str(exercise), str(admin)]
        return finish(self.processes, exercise, submit, seconds=seconds)

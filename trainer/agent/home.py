"""What lies in a node's home. `docs/architecture.md` lists the files."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

DEFAULT_HOME = Path("~/.trainmaster")


class AgentError(Exception):
    """The agent cannot go on; the message is a sentence for the person at the terminal."""


class NotWelcome(AgentError):
    """The server will not let this node in, however often it asks. A supervisor should not start it again."""


class Identity(BaseModel):
    """Who this node is. The secret opens the server's HTTP interface and the node's corner of the broker."""

    node_id: str
    name: str
    secret: str
    server_url: str


def default_name() -> str:
    """Return this machine's host name as a node name: lower case letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return name[:63] or "node"


class Home:
    """The folder of one node. Raises AgentError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        try:
            for folder in (self.path, self.runs, self.models, self.blobs, self.state):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AgentError(f"The node's home {self.path} cannot be used: {error.strerror}.") from None
        self._lock: IO[str] | None = None

    @classmethod
    def from_environment(cls, option: Path | None) -> Home:
        """Return the home that the option names, else TRAINMASTER_NODE_HOME, else the default."""
        return cls(option or Path(os.environ.get("TRAINMASTER_NODE_HOME") or DEFAULT_HOME))

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def state(self) -> Path:
        """What clients keep from round to round: it never leaves this machine."""
        return self.path / "state"

    @property
    def ledger(self) -> Path:
        """What jobs have spent of each source's privacy. It outlives jobs, and servers."""
        return self.path / "ledger"

    def job_state(self, job_id: int) -> Path:
        """Return the folder of what the clients of a job keep. They make it when they need it."""
        return self.state / f"job-{job_id}"

    def forget_jobs(self) -> None:
        """Remove what clients kept: to the server that is joined now, the jobs' numbers mean other jobs."""
        shutil.rmtree(self.state)
        self.state.mkdir(mode=0o700)

    @property
    def config_file(self) -> Path:
        return self.path / "node.toml"

    def run_folder(self, attempt_id: int) -> Path:
        """Return the work folder of an attempt, made when it is missing."""
        folder = self.runs / str(attempt_id)
        folder.mkdir(exist_ok=True)
        return folder

    def lock(self) -> None:
        """Hold the home until this process ends. Two agents on one home would fence off each other's telemetry."""
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise AgentError(
                f"Another agent is running on {self.path}: stop it first, or give this one a home of its own with --home."
            ) from None
        self._lock = lock

    def load_identity(self) -> Identity | None:
        """Return who this node is, or None before it has joined."""
        file = self.path / "identity.json"
        try:
            return Identity.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise AgentError(
                f"{file} cannot be read: remove it and join again with 'trainmaster node join URL --token TOKEN'."
            ) from None

    def save_identity(self, identity: Identity) -> None:
        """Keep the identity, readable by its owner only from the first byte on."""
        file = self.path / "identity.json"
        new = file.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(identity.model_dump_json(indent=2))
            f.flush()
            os.fsync(f.fileno())
        new.replace(file)

    def next_epoch(self, above: int = 0) -> int:
        """Return a number larger than any that this home gave before, even when the clock went backwards."""
        file = self.path / "epoch"
        try:
            last = int(file.read_text())
        except (FileNotFoundError, ValueError):
            last = 0
        epoch = max(time.time_ns() // 1_000_000, last + 1, above + 1)
        new = file.with_suffix(".new")
        new.write_text(str(epoch))
        new.replace(file)
        return epoch

"""The home of one stack: a folder with its secrets, ports, database, blobs, logs and local nodes.

Nothing here needs Django: the settings read the secret key that `prepare_home` makes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

LEAST_FREE_BYTES = 256 * 1024 * 1024
"""What a stack needs on its disk to start: the broker's log, the database, a few models."""


class StartError(Exception):
    """The stack cannot start. The text is one sentence that says why and what to do."""


@dataclass(frozen=True)
class Home:
    """Where a stack keeps what. All paths are absolute."""

    root: Path

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def broker(self) -> Path:
        return self.root / "broker"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def admin_password(self) -> Path:
        return self.secrets / "admin-password"

    @property
    def supervisor_config(self) -> Path:
        return self.root / "supervisord.conf"

    @property
    def ports(self) -> Path:
        return self.root / "ports.json"

    def node(self, number: int) -> Path:
        return self.root / "nodes" / f"node-{number}"


def prepare_home(root: Path) -> Home:
    """Make the folders and secrets that are missing. Raise StartError when the disk does not allow it."""
    home = Home(root.resolve())
    try:
        for folder in (home.root, home.logs, home.broker, home.blobs):
            folder.mkdir(parents=True, exist_ok=True)
        home.secrets.mkdir(mode=0o700, exist_ok=True)
        free = shutil.disk_usage(home.root).free
        if free < LEAST_FREE_BYTES:
            raise StartError(
                f"The disk of {home.root} has {free // 2**20} MB left, and a start needs {LEAST_FREE_BYTES // 2**20} MB: "
                "free some space, or choose another folder with TRAINMASTER_HOME."
            )
        for name in ("django", "broker"):
            keep_secret(home.secrets / name)
    except OSError as error:
        raise StartError(_sentence(error, home.root)) from error
    return home


def keep_secret(path: Path) -> str:
    """Return the secret kept in `path`, generating it on the first call. The file is the owner's alone (0600)."""
    if path.is_file() and (kept := path.read_text().strip()):
        return kept
    secret = secrets.token_urlsafe(32)
    write_private(path, secret + "\n")
    return secret


def write_private(path: Path, text: str) -> None:
    """Write `path` in one piece, readable by its owner alone: a crash leaves the old file or the new one."""
    draft = path.with_name(path.name + ".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def lock_home(home: Home) -> None:
    """Hold the home until this process and what it is replaced by (exec) end. Raise StartError when another holds it."""
    handle = os.open(home.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StartError(
            f"Trainmaster runs in {home.root} already: stop it first, or start a second one with another "
            "TRAINMASTER_HOME and PORT."
        ) from error
    os.set_inheritable(handle, True)


def check_port(host: str, port: int) -> None:
    """Raise StartError when the web server cannot listen there."""
    try:
        _listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"Port {port} is taken on {host}: choose another one, such as 'make up PORT={port + 1}'."
        elif error.errno == errno.EACCES:
            reason = f"Port {port} needs root: choose one above 1023, such as 'make up PORT=8000'."
        else:
            reason = f"HOST={host} is no address of this machine ({error.strerror}): use 127.0.0.1 or one that is."
        raise StartError(reason) from error


def broker_port(home: Home, host: str) -> int:
    """Return the port of this home's broker: the one kept in the home, or a new one when that is taken by now."""
    kept: int = json.loads(home.ports.read_text())["broker"] if home.ports.is_file() else 0
    try:
        port = _listen(host, kept)
    except OSError:
        port = _listen(host, 0)
    if port != kept:
        write_private(home.ports, json.dumps({"broker": port}) + "\n")
    return port


def _listen(host: str, port: int) -> int:
    """Listen for a moment; return the port, chosen by the system when `port` is 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the servers do: a socket of a stack that was stopped just now must not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
        return int(probe.getsockname()[1])


def _sentence(error: OSError, root: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk of {root} is full: free some space, or choose another folder with TRAINMASTER_HOME."
    return (
        f"{error.filename or root} cannot be written ({error.strerror}): "
        "make it writable, or choose another folder with TRAINMASTER_HOME."
    )

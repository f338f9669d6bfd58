"""The processes of one machine, and the supervisor's configuration that runs them."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from webapp.stack.home import Home


@dataclass(frozen=True)
class Program:
    """One supervised process. The environment is added to the stack's own; an empty value hides a variable."""

    name: str
    command: Sequence[str]
    group: str
    """Groups start in the order of GROUPS and stop in the opposite one, one after the other."""
    environment: dict[str, str] = field(default_factory=dict)
    once: bool = False
    """Runs to its end, and is not started again."""
    on_console: bool = False
    """Its output goes to the terminal of `make up` instead of a file."""
    signal_group: bool = True
    """The stop signal goes to the whole process group. An agent ends its runners itself, in good order."""


GROUPS = ("broker", "server", "nodes")
STOP_SECONDS = {"broker": 2, "server": 2, "nodes": 4}
"""Patience with each group before the kill: together under the ten seconds that a stop may take."""


def server_programs(*, host: str, port: int, server_url: str, broker_command: Sequence[str]) -> list[Program]:
    """The broker, the server's processes, and the greeter that prints the address. docker-compose.yml runs the same commands."""
    celery = [sys.executable, "-m", "celery", "-A", "webapp.celery"]
    manage = [sys.executable, str(Path(__file__).resolve().parents[2] / "manage.py")]
    web = [sys.executable, "-m", "uvicorn", "webapp.asgi:application", "--host", host, "--port", str(port)]
    web += ["--no-access-log", "--lifespan", "off", "--timeout-graceful-shutdown", "1"]
    conductor = [*celery, "worker", "--pool", "threads", "--loglevel", "WARNING"]
    conductor += ["--without-mingle", "--without-gossip", "--without-heartbeat"]  # nobody listens, and mingle waits 1 s
    # The default scheduler keeps its times in a pickle; ours are seconds apart, and need no memory.
    clock = [*celery, "beat", "--scheduler", "celery.beat:Scheduler", "--pidfile", "", "--loglevel", "WARNING"]
    return [
        Program("broker", broker_command, "broker"),
        Program("web", web, "server"),
        Program("conductor", conductor, "server"),
        Program("beat", clock, "server"),
        Program("ingest", [*manage, "ingest"], "server"),
        Program("welcome", [*manage, "welcome", server_url], "server", once=True, on_console=True),
    ]


def node_program(*, home: Home, number: int, server_url: str) -> Program:
    """One local agent. It joins by a token like any other node, and sees none of the server's secrets."""
    folder = home.node(number)
    return Program(
        f"node-{number}",
        [sys.executable, "-m", "trainer.cli", "node", "start"],
        "nodes",
        environment={
            "TRAINMASTER_NODE_HOME": str(folder),
            "TRAINMASTER_NODE_NAME": folder.name,
            "TRAINMASTER_JOIN_URL": server_url,
            "TRAINMASTER_JOIN_TOKEN_FILE": str(folder / "join-token"),
            "BROKER_URL": "",
            "DATABASE_URL": "",
            "TRAINMASTER_SECRET_KEY": "",
        },
        signal_group=False,
    )


def supervisor_config(*, home: Home, programs: Sequence[Program], supervisor_pid: int) -> str:
    """Return supervisord's configuration. `supervisor_pid` is that of the process that will run it."""
    parts = [
        f"""\
[supervisord]
nodaemon=true
silent=true
user={getpass.getuser()}
logfile={_escaped(home.logs / "supervisord.log")}
pidfile={_escaped(home.root / "supervisord.pid")}
childlogdir={_escaped(home.logs)}
"""
    ]
    for rank, group in enumerate(GROUPS):
        members = [p for p in programs if p.group == group]
        if members:
            parts.append(f"[group:{group}]\nprograms={','.join(p.name for p in members)}\npriority={rank}\n")
        parts += [_program_section(p, home, supervisor_pid) for p in members]
    return "\n".join(parts)


def _program_section(program: Program, home: Home, supervisor_pid: int) -> str:
    leash = [sys.executable, "-m", "webapp.stack.leash", str(supervisor_pid)]
    environment = {"TRAINMASTER_PROCESS": program.name, **program.environment}
    log = "/dev/stdout" if program.on_console else str(home.logs / f"{program.name}.log")
    rotation = "stdout_logfile_maxbytes=0" if program.on_console else "stdout_logfile_maxbytes=10MB"
    return f"""\
[program:{program.name}]
command={_escaped(" ".join(_quoted(word) for word in [*leash, *program.command]))}
environment={_escaped(",".join(f"{name}={_quoted(value)}" for name, value in environment.items()))}
autorestart={"false" if program.once else "unexpected"}
; A process that ends is started again each second, for as long as it takes. Only a node that was revoked stays away.
exitcodes={os.EX_CONFIG}
startsecs=0
stopasgroup={str(program.signal_group).lower()}
killasgroup=true
stopwaitsecs={STOP_SECONDS[program.group]}
redirect_stderr=true
stdout_logfile={_escaped(log)}
{rotation}
stdout_logfile_backups=2
"""


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(text: object) -> str:
    """supervisord expands %(name)s in every value."""
    return str(text).replace("%", "%%")

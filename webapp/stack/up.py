"""`manage.py up`: prepare a home, then become the supervisor of everything in it.

1. the home, its secrets and ports       (no Django yet: the settings read the secret key from the home)
2. the database's tables, static files, on the first run the administrator and a team
3. a one-time token for each local node that has not joined
4. this process is replaced by supervisord, which starts the rest and stops it on Ctrl-C or SIGTERM
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from urllib.parse import urlsplit

from webapp.stack import home as homes
from webapp.stack.broker import write_broker_config
from webapp.stack.home import Home, StartError
from webapp.stack.programs import node_program, server_programs, supervisor_config

ANY_ADDRESS = ("0.0.0.0", "::")


def main() -> None:
    """Start the stack that HOST, PORT, NODES and TRAINMASTER_HOME describe. Exit 1 with a sentence when it cannot be."""
    try:
        _start()
    except StartError as error:
        sys.exit(f"Trainmaster did not start. {error}")


def _start() -> None:
    host, port = os.environ.get("HOST") or "127.0.0.1", _number("PORT", 8000, most=65_535)
    num_nodes = _number("NODES", 2, most=64)
    root = Path(__file__).resolve().parents[2]
    home = homes.prepare_home(Path(os.environ.get("TRAINMASTER_HOME") or root / "var"))
    homes.lock_home(home)
    homes.check_port(host, port)
    broker = homes.broker_port(home, host)
    _set_environment(home=home, host=host, port=port, broker=broker)

    from webapp.stack import first_run  # needs the settings, and so the environment above

    first_run.prepare(home)
    server_url = f"http://{_visible_host(host)}:{port}"
    password = homes.keep_secret(home.secrets / "broker")
    command = write_broker_config(folder=home.broker, port=broker, password=password, host=host)
    programs = server_programs(host=host, port=port, server_url=server_url, broker_command=command)
    for number in range(1, num_nodes + 1):
        first_run.prepare_node(home, number=number, num_nodes=num_nodes, server_url=server_url)
        programs.append(node_program(home=home, number=number, server_url=server_url))
    config = supervisor_config(home=home, programs=programs, supervisor_pid=os.getpid())
    homes.write_private(home.supervisor_config, config)
    _allow_sockets()
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "supervisor.supervisord", "-c", str(home.supervisor_config)])


def _set_environment(*, home: Home, host: str, port: int, broker: int) -> None:
    """What every process of the stack reads. A variable that the user set stays."""
    password = homes.keep_secret(home.secrets / "broker")
    visible = _visible_host(host)
    public_url = os.environ.setdefault("TRAINMASTER_PUBLIC_URL", f"http://{visible}:{port}")
    public_host = urlsplit(public_url).hostname or visible
    names = {"127.0.0.1", "localhost", "[::1]", visible, public_host}
    os.environ.setdefault("TRAINMASTER_ALLOWED_HOSTS", ",".join(sorted(names)))
    os.environ.setdefault("NODE_BROKER_URL", f"redis://{public_host if host in ANY_ADDRESS else visible}:{broker}/0")
    os.environ.update(
        TRAINMASTER_HOME=str(home.root),
        BROKER_URL=f"redis://default:{password}@{visible}:{broker}/0",
        DJANGO_SETTINGS_MODULE="webapp.settings",
        PYTHONUNBUFFERED="1",
    )


def _visible_host(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`, as it stands in a URL."""
    if host in ANY_ADDRESS:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _allow_sockets() -> None:
    """Each watching browser and each node holds a socket: take the most that the system grants."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _number(name: str, default: int, *, most: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise StartError(f"{name}={text} is no number from 0 to {most}: write for example {name}={default}.")
    return int(text)

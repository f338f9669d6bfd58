"""`trainmaster node join | start`: make this machine a node, and run it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make this machine a node, and run it.")

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the node. Default: $TRAINMASTER_NODE_HOME, else ~/.trainmaster."),
]


@app.command()
def join(
    url: Annotated[str, typer.Argument(help="Address of the Trainmaster server, such as https://train.example.org.")],
    token: Annotated[str, typer.Option(help="The one-time token from the page Nodes, Add node.")],
    home: HomeOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the node. Default: this machine's host name.")] = None,
) -> None:
    """Enrol this machine with a server. Start it afterwards with 'trainmaster node start'."""
    # Here, not above: the user's commands must not pay for the agent's imports.
    import httpx

    from trainer.agent.home import AgentError, Home
    from trainer.agent.join import join as join_server
    from trainer.agent.server import ServerUnavailable

    try:
        identity = join_server(Home.from_environment(home), url, token, name)
    except (AgentError, ServerUnavailable) as error:
        _say_and_exit(str(error))
    except httpx.TransportError as error:
        _say_and_exit(f"Nobody answers at {url} ({error}): check the address and that the server runs.")
    typer.echo(f"This machine is now the node {identity.name}. Start it with: trainmaster node start")


@app.command()
def start(home: HomeOption = None) -> None:
    """Run this node until Ctrl-C. Joins first where the environment says how (TRAINMASTER_JOIN_URL)."""
    # A process of its own module: the forkserver's children would otherwise import this script again.
    option = ["--home", str(home)] if home else []
    os.execv(sys.executable, [sys.executable, "-m", "trainer.agent", *option])


def _say_and_exit(sentence: str) -> None:
    typer.echo(f"trainmaster: {sentence}", err=True)
    raise typer.Exit(1)

"""`trainmaster node join | start | status | forget`: make this machine a node, run it, and see whom it trusts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

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


@app.command()
def status(home: HomeOption = None) -> None:
    """Show who this node is, and the keys of the nodes with which it has aggregated securely."""
    from trainer.agent.home import AgentError, Home
    from trainer.agent.pins import Pins
    from trainer.agent.signing import load_signing_key
    from trainer.secure.keys import fingerprint, public_key

    try:
        here = Home.from_environment(home)
        identity = here.load_identity()
        name = identity.name if identity else "(not joined yet)"
        own = fingerprint(public_key(load_signing_key(here)))
        pins = sorted(Pins(here, name).read().values(), key=lambda pin: pin.node)
    except AgentError as error:
        _say_and_exit(str(error))
    typer.echo(f"Node        {name}")
    typer.echo(f"Server      {identity.server_url if identity else '-'}")
    typer.echo(f"Home        {here.path}")
    typer.echo(f"Fingerprint {own}")
    for pin in pins:
        typer.echo(f"Knows       {fingerprint(pin.identity)}  {pin.node}")


@app.command()
def forget(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of another node, or the fingerprint of its key, which has changed and been confirmed by its owner."
        ),
    ],
    home: HomeOption = None,
) -> None:
    """Forget another node's key: the one that it shows next is trusted from then on."""
    from trainer.agent.home import AgentError, Home
    from trainer.agent.pins import Pins
    from trainer.secure.keys import fingerprint

    try:
        pins = Pins(Home.from_environment(home), "this node")
        gone = pins.forget(name)
        known = sorted({pin.node for pin in pins.read().values()})
    except AgentError as error:
        _say_and_exit(str(error))
    if not gone:
        _say_and_exit(f"This node knows no key of '{name}'. It knows those of: {', '.join(known) or 'nobody'}.")
    for pin in gone:
        typer.echo(
            f"The key {fingerprint(pin.identity)} of {pin.node} is forgotten. The next one that it shows will be trusted."
        )


@app.command()
def budget(home: HomeOption = None) -> None:
    """Show what jobs have spent of the privacy of each data source."""
    from trainer.agent.config import load_config
    from trainer.agent.home import AgentError, Home
    from trainer.agent.ledger import describe_ledger

    try:
        here = Home.from_environment(home)
        for line in describe_ledger(here.ledger, load_config(here.config_file).budgets):
            typer.echo(line)
    except AgentError as error:
        _say_and_exit(str(error))


def _say_and_exit(sentence: str) -> NoReturn:
    typer.echo(f"trainmaster: {sentence}", err=True)
    raise typer.Exit(1)

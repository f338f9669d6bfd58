"""`trainmaster`: the command line of a node and of a user. Nothing here imports torch or the server."""

from __future__ import annotations

import typer

from trainer.commands import jobs, node

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Run this machine as a node, and jobs.")
app.add_typer(node.app, name="node")
app.add_typer(jobs.app)

if __name__ == "__main__":
    app()

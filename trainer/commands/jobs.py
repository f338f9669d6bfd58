"""`trainmaster submit | jobs | logs | cancel | resume`: jobs from the command line, over the web server's API."""

from __future__ import annotations

import json
import sys
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.commands.server import REFUSED, CommandError, Server, ServerAway, connect, sentences

app = typer.Typer(help="Submit jobs and follow them.")

POLL_SECONDS = 0.5
PAGE_LINES = 1000
PAUSE_WHILE_AWAY_SECONDS = 2.0
ENDED = ("finished", "failed", "cancelled")
COLOURS = {"queued": "yellow", "running": "blue", "finished": "green", "failed": "red", "cancelled": "dim"}
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]
JobId = Annotated[int, typer.Argument(help="The job's number.", min=1)]


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(help="A job's spec, as YAML or JSON.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print its logs until it ends.")] = False,
    team: Annotated[str | None, typer.Option(help="Slug of the team, for those who are in several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job and print its number."""
    with sentences(), connect() as server:
        job = server.post("/jobs", {"spec": _read_spec(spec)}, key=str(uuid.uuid4()), team=team)
        typer.echo(json.dumps(job) if as_json else f"Job {job['id']}: {server.url}/jobs/{job['id']}/")
        if follow:
            _follow(server, job["id"], as_json=as_json)


@app.command("jobs")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    mode: Annotated[str | None, typer.Option(help="Only federated, or only distributed ones.")] = None,
    team: Annotated[str | None, typer.Option(help="Only jobs of the team with this slug.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this user.")] = None,
    search: Annotated[str | None, typer.Option("--search", "-q", help="Only jobs with this in their name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many, newest first.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List the jobs of your teams."""
    with sentences(), connect() as server:
        page = server.get("/jobs", state=state or None, mode=mode, team=team, owner=owner, q=search, limit=limit)
        if as_json:
            typer.echo(json.dumps(page))
        else:
            _print_table(page["items"])
            if page["total"] > len(page["items"]):
                typer.echo(f"{len(page['items'])} of {page['total']}: narrow the search, or raise --limit.", err=True)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log of a job's runners."""
    with sentences(), connect() as server:
        if follow:
            _follow(server, job_id, as_json=as_json)
        else:
            _print_logs(server, job_id, after=0, as_json=as_json)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """End a job."""
    with sentences(), connect() as server:
        job = server.post(f"/jobs/{job_id}/cancel")
        typer.echo(json.dumps(job) if as_json else f"Job {job_id} is {job['state']}.")


@app.command()
def resume(
    job_id: JobId,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to add, for a federated job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue an ended job again. A federated one goes on after its last closed round; a finished one needs --rounds."""
    with sentences(), connect() as server:
        job = server.post(f"/jobs/{job_id}/resume", {"rounds": rounds} if rounds is not None else None)
        typer.echo(json.dumps(job) if as_json else f"Job {job_id} is {job['state']}.")


def _read_spec(path: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not text in UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise CommandError(f"{path} is not YAML: {line}{error.problem}.") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{path} is not YAML: {error}.") from None
    if not isinstance(spec, dict):
        raise CommandError(f"{path} does not hold a spec: write fields, such as 'name: My job'.")
    try:
        # YAML knows dates and infinities, JSON does not; an unquoted date in a name stays what was written.
        return dict(json.loads(json.dumps(spec, default=str, allow_nan=False)))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} holds what a spec cannot: {error}.") from None


def _print_table(jobs: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("ID", "NAME", "MODE", "STATE", "PROGRESS", "OWNER", "TEAM", "CREATED (UTC)"):
        table.add_column(name, justify="right" if name in ("ID", "PROGRESS") else "left", no_wrap=name != "NAME")
    for job in jobs:
        progress = _progress(**job["progress"])
        created = job["created_at"][:16].replace("T", " ")
        cells = (str(job["id"]), job["name"], job["mode"], job["state"], progress, job["owner"], job["team"], created)
        # Text, not str: a name such as [red] is no markup.
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "") if cell is job["state"] else "") for cell in cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _progress(*, done: int, total: int, planned: int, unit: str) -> str:
    early = ", stopped early" if total < planned else ""
    return f"{done}/{planned} {unit}{early}"


def _follow(server: Server, job_id: int, *, as_json: bool) -> None:
    """Print logs until the job has ended and they are drained, and on stderr how far it is. Exits with 1 if it did not finish.

    A server that goes away while one follows is waited for: the job goes on without it.
    """
    after, away, told = 0, False, ""
    while True:
        try:
            # Read before the logs: what was written until the end is in them.
            job = server.get(f"/jobs/{job_id}")
            after = _print_logs(server, job_id, after=after, as_json=as_json)
            away = False
            if (news := _news(job)) != told:
                typer.echo(news, err=True)
                told = news
        except ServerAway as error:
            if not away:
                typer.echo(f"{error} Trying again.", err=True)
            away = True
            time.sleep(PAUSE_WHILE_AWAY_SECONDS)
            continue
        if job["state"] in ENDED:
            if job["state"] != "finished":
                raise typer.Exit(REFUSED)
            return
        time.sleep(POLL_SECONDS)


def _news(job: dict[str, Any]) -> str:
    """One line: how the job stands, and why or what it waits for."""
    if job["state"] == "running":
        progress = "{done} of {total} {unit}".format(**job["progress"])
        return f"Job {job['id']} is running: {progress}"
    reason = job["waiting_for"]["what"] if job["waiting_for"] else job["state_reason"]
    return f"Job {job['id']} is {job['state']}" + (f": {reason}" if reason else "")


def _print_logs(server: Server, job_id: int, *, after: int, as_json: bool) -> int:
    """Print all lines with an id above `after`; return the last id."""
    while True:
        lines = server.get(f"/jobs/{job_id}/logs", after_id=after, limit=PAGE_LINES)["lines"]
        for line in lines:
            typer.echo(json.dumps(line) if as_json else _readable(line))
            after = line["id"]
        if len(lines) < PAGE_LINES:
            return after


def _readable(line: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(line["time"]).strftime("%H:%M:%S")
    level = "" if line["level"] == "info" else f"{line['level']}: "
    return f"{at} {line['source']} | {level}{line['text']}"

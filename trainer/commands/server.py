"""The web server's API as the command line uses it. Neither torch nor Django: a command answers at once."""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import typer

REFUSED, AWAY = 1, 3
"""Exit codes: what was asked is not possible; the server did not answer, or broke. (2 is a wrong command line.)"""
CONFIG = Path("~/.config/trainmaster.toml")


class CommandError(Exception):
    """Why a command cannot go on: a sentence for the person, and the exit code."""

    def __init__(self, sentence: str, *, code: int = REFUSED) -> None:
        super().__init__(sentence)
        self.code = code


class ServerAway(CommandError):
    """The server did not answer, or broke at it. It may be back in a moment."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=AWAY)


@contextmanager
def sentences() -> Iterator[None]:
    """Turn a CommandError into its sentence on stderr and its exit code; Ctrl-C into 130, silently."""
    try:
        yield
    except CommandError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


class Server:
    """A connection to /api/v1."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._client = httpx.Client(
                base_url=f"{self.url}/api/v1",
                headers={"Authorization": f"Bearer {token}"},
                timeout=30,
                verify=ssl.create_default_context(cafile=os.environ.get("TRAINMASTER_CA_FILE") or None),
            )
        except OSError as error:
            raise CommandError(f"TRAINMASTER_CA_FILE cannot be read: {error}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        """Return the decoded answer. Parameters that are None are left out."""
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Any = None, *, key: str | None = None, **params: Any) -> Any:
        """Return the decoded answer. With a `key` (Idempotency-Key) it is sent once more where the answer got lost."""
        options = {"json": body, "params": {k: v for k, v in params.items() if v is not None}}
        if key is None:
            return self._call("POST", path, **options)
        options["headers"] = {"Idempotency-Key": key}
        try:
            return self._call("POST", path, **options)
        except ServerAway:
            return self._call("POST", path, **options)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServerAway(
                f"No answer from {self.url}: {error}. Is the server running, and the address right?"
            ) from None
        if response.is_success:
            return response.json()
        raise self._error(response)

    def _error(self, response: httpx.Response) -> CommandError:
        try:
            problem = response.json()
            detail = problem["detail"]
            errors = [e for e in problem.get("errors", ()) if e["message"] != detail]
            lines = [detail, *(f"  {'.'.join(map(str, e['loc'])) or 'spec'}: {e['message']}" for e in errors)]
        except (ValueError, KeyError, TypeError):
            lines = [f"{self.url} answered {response.status_code}, not as Trainmaster does: check the address."]
        text = "\n".join(lines)
        return ServerAway(text) if response.status_code >= 500 else CommandError(text)


def connect() -> Server:
    """Connect as TRAINMASTER_URL and TRAINMASTER_TOKEN say, or else the `url` and `token` of ~/.config/trainmaster.toml."""
    path = CONFIG.expanduser()
    try:
        kept = tomllib.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from None
    url = os.environ.get("TRAINMASTER_URL") or kept.get("url")
    token = os.environ.get("TRAINMASTER_TOKEN") or kept.get("token")
    if not isinstance(url, str) or not isinstance(token, str):
        raise CommandError(
            f'Set TRAINMASTER_URL and TRAINMASTER_TOKEN, or write url = "..." and token = "..." into {CONFIG}. '
            "The team page of the web server makes tokens."
        )
    if not token.isascii():
        raise CommandError("The token has letters that no token has: copy it again.")
    if not _is_address(url):
        raise CommandError(f"The server's address is '{url}': it must read http://HOST:PORT or https://HOST.")
    return Server(url, token)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False

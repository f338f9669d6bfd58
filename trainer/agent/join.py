"""How a machine becomes a node: enrolment by a one-time token, then the wait for an administrator's approval."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential,
)

from trainer.agent.config import Catalogue, load_config
from trainer.agent.facts import collect_facts
from trainer.agent.home import AgentError, Home, Identity, NotWelcome, default_name
from trainer.agent.server import PASSING, Server, ServerRefusal
from trainer.agent.signing import load_signing_key
from trainer.protocol import EnrolRequest, NodeStatus
from trainer.secure.keys import public_key

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 5.0


class _NotYet(Exception):
    """Try again later."""


def join(home: Home, url: str, token: str, name: str | None) -> Identity:
    """Enrol this machine and keep its identity. Raises AgentError, or httpx.TransportError where nobody answers."""
    if home.load_identity():
        raise AgentError(f"{home.path} belongs to a node already: start it, or join with another --home.")
    config = load_config(home.config_file)
    facts = collect_facts(config, Catalogue(config), url, public_key(load_signing_key(home)))
    try:
        request = EnrolRequest(token=token, name=name or default_name(), facts=facts)
    except ValidationError:
        raise AgentError(
            f"The name '{name}' does not work: use up to 63 lower case letters, digits and dashes."
        ) from None
    try:
        answer = Server(url).enrol(request)
    except httpx.UnsupportedProtocol:
        raise AgentError(f"'{url}' is not a web address: it begins with http:// or https://.") from None
    except ServerRefusal as refusal:
        raise AgentError(f"The server at {url} did not take this node: {refusal}") from None
    except ValidationError:
        raise AgentError(f"What answers at {url} is not a Trainmaster server: check the address.") from None
    identity = Identity(node_id=answer.node_id, name=request.name, secret=answer.secret, server_url=url)
    home.forget_jobs()
    home.save_identity(identity)
    return identity


def join_from_environment(home: Home, stop: threading.Event) -> Identity:
    """Join as TRAINMASTER_JOIN_URL and TRAINMASTER_JOIN_TOKEN (or _TOKEN_FILE) say, as soon as the server is up.

    The name is TRAINMASTER_NODE_NAME, else the host's. Raises AgentError.
    """
    url = os.environ.get("TRAINMASTER_JOIN_URL", "")
    token = os.environ.get("TRAINMASTER_JOIN_TOKEN", "")
    token_file = os.environ.get("TRAINMASTER_JOIN_TOKEN_FILE", "")
    name = os.environ.get("TRAINMASTER_NODE_NAME") or None
    if not url or not (token or token_file):
        raise AgentError(
            f"{home.path} has no identity yet: run 'trainmaster node join URL --token TOKEN' first "
            f"(an administrator gets the command at Nodes, Add node)."
        )

    def attempt() -> Identity:
        try:
            return join(home, url, token or Path(token_file).read_text().strip(), name)
        except OSError as error:
            raise _NotYet(f"the token file {token_file} cannot be read: {error.strerror}") from None

    return _until(attempt, stop, (_NotYet, *PASSING), f"Joining {url}", first=0.2)


def wait_for_approval(server: Server, stop: threading.Event) -> NodeStatus:
    """Return once the node may connect to the broker. Raises NotWelcome when it never may."""

    def ask() -> NodeStatus:
        status = ask_status(server)
        if status.state == "pending" or not status.broker_url:
            raise _NotYet(f"an administrator must approve the node '{status.name}' on the page Nodes")
        return status

    return _until(ask, stop, (_NotYet, *PASSING), f"Waiting for {server.url}", first=FIRST_PAUSE_SECONDS)


def ask_status(server: Server) -> NodeStatus:
    """Return what the server says of this node. Raises NotWelcome where it is revoked or unknown."""
    try:
        status = server.me()
    except ServerRefusal as refusal:
        raise NotWelcome(
            f"The server does not know this node: {refusal} To join anew, remove identity.json from its home."
        ) from None
    if status.state == "revoked":
        raise NotWelcome(f"The node '{status.name}' was revoked by an administrator. Ask for a new token to join.")
    return status


def _until(
    attempt: Callable[[], T], stop: threading.Event, passing: tuple[type[Exception], ...], what: str, *, first: float
) -> T:
    """Return `attempt()`, repeated with growing pauses until it works. Says what it waits for when that changes."""
    said = ""

    def say(retry: RetryCallState) -> None:
        nonlocal said
        reason = str(retry.outcome.exception()) if retry.outcome else ""
        if reason != said:
            logger.info("%s: %s.", what, reason.rstrip("."))
            said = reason

    retrying = Retrying(
        retry=retry_if_exception_type(passing),
        wait=wait_exponential(multiplier=first, max=LONGEST_PAUSE_SECONDS),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except passing:
        raise AgentError("Stopped before this node was ready.") from None

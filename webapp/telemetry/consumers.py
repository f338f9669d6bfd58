"""The browsers' sockets: authorise at the door, join a group, forward bytes. No database in the fan-out.

A watcher is looked at again every RECHECK_SECONDS: who was removed from the team, signed out or lost the token is
shut out then. Close codes: 4401 sign in first; 4404 no such job, for you. The socket is accepted before it is closed,
because a browser learns the code of an accepted socket only.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from importlib import import_module
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest

from webapp.core.live import PingMessage, job_group, team_group
from webapp.jobs.selectors import get_job
from webapp.teams.selectors import teams_visible_to
from webapp.teams.services import authenticate_token
from webapp.telemetry.outbox import Outbox

NOBODY = 4401
NOT_FOUND = 4404
RECHECK_SECONDS = 30.0
PING_SECONDS = 20.0

_PING: PingMessage = {"type": "ping"}


class Shut(Exception):
    """The watcher may not watch (any more). `code` closes the socket."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class LiveConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A socket that only listens. Subclasses say to which groups."""

    def groups_for(self, user: User) -> set[str]:
        """Return the groups that `user` may hear on this socket. Raises Shut. Runs in a thread, and may query."""
        raise NotImplementedError

    async def connect(self) -> None:
        await self.accept()
        self._outbox = Outbox()
        self._joined: set[str] = set()
        self._sender: asyncio.Task[None] | None = None
        try:
            await self._check()
        except Shut as shut:
            await self.close(shut.code)
            return
        self._outbox.put(json.dumps(_PING))  # the page may load its history now: it misses nothing from here on
        self._sender = asyncio.create_task(self._send_all())

    async def disconnect(self, code: int) -> None:
        if self._sender is not None:
            self._sender.cancel()
        for group in self._joined:
            await self.channel_layer.group_discard(group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """A page has nothing to say here; what it sends is ignored."""

    async def live_message(self, event: dict[str, Any]) -> None:
        """Take what `live.publish` sent to a group."""
        self._outbox.put(event["text"])

    async def _send_all(self) -> None:
        """Send what comes, pings between, and look at the watcher again from time to time."""
        # Spread out: two thousand watchers who reconnected at once are not checked at once.
        recheck_at = time.monotonic() + RECHECK_SECONDS * random.uniform(0.5, 1)
        try:
            while True:
                now = time.monotonic()
                if now >= recheck_at:
                    await self._check()
                    recheck_at = now + RECHECK_SECONDS
                try:
                    async with asyncio.timeout(min(PING_SECONDS, max(0.0, recheck_at - now))):
                        text = await self._outbox.get()
                except TimeoutError:
                    text = json.dumps(_PING)
                await self.send(text)
        except Shut as shut:
            await self.close(shut.code)

    async def _check(self) -> None:
        """Join the groups that the watcher may hear now, and leave the others. Raises Shut."""
        wanted = await database_sync_to_async(self._authorise)()
        for group in wanted - self._joined:
            await self.channel_layer.group_add(group, self.channel_name)
        for group in self._joined - wanted:
            await self.channel_layer.group_discard(group, self.channel_name)
        self._joined = wanted

    def _authorise(self) -> set[str]:
        user = _token_user(self.scope) if _bearer(self.scope) else _session_user(self.scope)
        if user is None:
            raise Shut(NOBODY)
        return self.groups_for(user)


class JobConsumer(LiveConsumer):
    """/ws/jobs/<id>/: the live stream of one job."""

    def groups_for(self, user: User) -> set[str]:
        job_id: int = self.scope["url_route"]["kwargs"]["job_id"]
        try:
            return {job_group(get_job(user, job_id).pk)}
        except Http404:
            raise Shut(NOT_FOUND) from None


class JobListConsumer(LiveConsumer):
    """/ws/jobs/: what changes in the lists of one's teams."""

    def groups_for(self, user: User) -> set[str]:
        return {team_group(pk) for pk in teams_visible_to(user).order_by().values_list("pk", flat=True)}


def _bearer(scope: dict[str, Any]) -> str:
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    kind, _, token = header.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _token_user(scope: dict[str, Any]) -> User | None:
    return authenticate_token(token=_bearer(scope))


def _session_user(scope: dict[str, Any]) -> User | None:
    """The signed-in user, read anew: the scope's own was read once, and would outlive a sign-out."""
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(scope["session"].session_key)
    user = get_user(request)
    return user if isinstance(user, User) and user.is_active else None

"""The sockets, through the real ASGI application, with the four people."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from channels.layers import channel_layers
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.conftest import browser_of
from tests.web.telemetry.websocket import Websocket
from webapp.core import live
from webapp.teams.services import create_api_token, remove_member, revoke_api_token

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
async def layer(broker):
    channel_layers.backends.clear()  # made for another event loop, and perhaps another broker
    yield
    await channel_layers["default"].flush()
    channel_layers.backends.clear()


async def connect(path: str, user: User | None = None, token: str = "") -> Websocket:
    headers = [(b"origin", b"http://127.0.0.1"), (b"host", b"127.0.0.1")]
    if user is not None:
        headers.append((b"cookie", await session_cookie(user)))
    if token:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    socket = Websocket(path, headers)
    assert await socket.connect()
    return socket


async def session_cookie(user: User) -> bytes:
    client = await sync_to_async(browser_of)(user)
    name = django_settings.SESSION_COOKIE_NAME
    return f"{name}={client.cookies[name].value}".encode()


def say(group: str, message: live.LiveMessage) -> None:
    live.publish([(group, message)])


CHANGED: live.ChangedMessage = {"type": "changed", "job": 1, "what": "state"}


@pytest.mark.parametrize("person", ["owner", "teammate", "admin"])
async def test_who_may_see_the_job_hears_it(person, owner, teammate, admin, job):
    people = {"owner": owner, "teammate": teammate, "admin": admin}
    socket = await connect(f"/ws/jobs/{job.pk}/", people[person])
    assert await socket.hear() == {"type": "ping"}  # it is joined
    frame: live.PointsMessage = {"type": "points", "attempt": 1, "seq": 1, "series": []}
    await sync_to_async(say)(live.job_group(job.pk), frame)
    assert await socket.hear() == frame
    await socket.leave()


async def test_a_stranger_and_an_unknown_id_get_the_same_answer(job, stranger, owner):
    for user, job_id in ((stranger, job.pk), (owner, job.pk + 1), (owner, 2**70)):
        assert await (await connect(f"/ws/jobs/{job_id}/", user)).close_code() == 4404


@pytest.mark.parametrize("path", ["/ws/jobs/1/", "/ws/jobs/"])
async def test_nobody_is_asked_to_sign_in(path, job):
    assert await (await connect(path)).close_code() == 4401
    assert await (await connect(path, token="tma_wrong")).close_code() == 4401


async def test_a_wrong_token_is_not_made_good_by_a_session(job, owner):
    assert await (await connect(f"/ws/jobs/{job.pk}/", owner, token="tma_wrong")).close_code() == 4401


async def test_a_token_opens_it_until_it_is_revoked(job, owner, monkeypatch):
    monkeypatch.setattr("webapp.telemetry.consumers.RECHECK_SECONDS", 0.2)
    token, secret = await sync_to_async(create_api_token)(user=owner, name="laptop")
    socket = await connect(f"/ws/jobs/{job.pk}/", token=secret)
    assert await socket.hear() == {"type": "ping"}
    await sync_to_async(revoke_api_token)(token=token)
    assert await socket.close_code() == 4401


async def test_who_leaves_the_team_is_shut_out(job, teammate, team, monkeypatch):
    monkeypatch.setattr("webapp.telemetry.consumers.RECHECK_SECONDS", 0.2)
    socket = await connect(f"/ws/jobs/{job.pk}/", teammate)
    await sync_to_async(remove_member)(team=team, user=teammate)
    assert await socket.close_code() == 4404


async def test_who_signs_out_is_shut_out(job, owner, monkeypatch):
    from django.contrib.sessions.models import Session

    monkeypatch.setattr("webapp.telemetry.consumers.RECHECK_SECONDS", 0.2)
    socket = await connect(f"/ws/jobs/{job.pk}/", owner)
    await Session.objects.all().adelete()
    assert await socket.close_code() == 4401


async def test_the_list_hears_of_ones_own_teams_only(team, owner, stranger, job):
    mine, other = await connect("/ws/jobs/", owner), await connect("/ws/jobs/", stranger)
    assert [await mine.hear(), await other.hear()] == [{"type": "ping"}] * 2
    await sync_to_async(say)(live.team_group(team.pk), CHANGED)
    assert await mine.hear() == CHANGED
    assert await other.receive_nothing(timeout=0.2)
    await mine.leave()
    await other.leave()


async def test_an_idle_socket_is_pinged(job, owner, monkeypatch):
    monkeypatch.setattr("webapp.telemetry.consumers.PING_SECONDS", 0.1)
    socket = await connect(f"/ws/jobs/{job.pk}/", owner)
    assert [await socket.hear() for _ in range(3)] == [{"type": "ping"}] * 3
    await socket.leave()


async def test_what_a_page_says_is_ignored(job, owner):
    socket = await connect(f"/ws/jobs/{job.pk}/", owner)
    await socket.hear()
    await socket.say(text='{"type": "points"}')
    await socket.say(bytes=b"\xff")
    await sync_to_async(say)(live.job_group(job.pk), CHANGED)
    assert await socket.hear() == CHANGED
    await socket.leave()


async def test_another_sites_page_is_refused(job, owner):
    headers = [(b"origin", b"https://evil.example"), (b"cookie", await session_cookie(owner))]
    assert not await Websocket(f"/ws/jobs/{job.pk}/", headers).connect()


async def test_the_fan_out_asks_the_database_nothing(job, owner):
    socket = await connect(f"/ws/jobs/{job.pk}/", owner)
    await socket.hear()
    queries = CaptureQueriesContext(connection)
    await sync_to_async(queries.__enter__)()  # of the thread in which the consumers would ask
    for _ in range(20):
        await sync_to_async(say)(live.job_group(job.pk), CHANGED)
    assert [await socket.hear() for _ in range(20)] == [CHANGED] * 20
    await sync_to_async(queries.__exit__)(None, None, None)
    assert len(queries) == 0
    await socket.leave()

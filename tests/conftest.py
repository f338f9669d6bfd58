"""The people, and a real broker. Everyone in these tests is one of: owner, teammate, stranger, nobody, admin."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest
import redis
from django.contrib.auth.models import User
from django.test import Client

from tests.ports import free_port
from webapp.stack.broker import write_broker_config
from webapp.teams.models import Membership, Team

pytest_plugins = ["tests.realstack"]


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this test process alone, as `make up` would start it; `settings.BROKER_URL` of all its tests."""
    port = free_port()
    command = write_broker_config(folder=tmp_path_factory.mktemp("broker"), port=port, password="secret")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://default:secret@127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.02)
    yield url
    server.terminate()
    server.wait()


@pytest.fixture
def broker(broker_url: str, settings) -> Iterator[redis.Redis]:
    """A client of the broker, emptied; the product's settings point at it."""
    settings.BROKER_URL = broker_url
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "webapp.telemetry.layer.LiveLayer",
            "CONFIG": {"hosts": [broker_url], "prefix": "live"},
        }
    }
    with redis.Redis.from_url(broker_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def team(db) -> Team:
    return Team.objects.create(name="Cardiology", slug="cardiology")


def _person(name: str, team: Team | None = None, role: str = "member", **flags: bool) -> User:
    user = User.objects.create_user(name, f"{name}@example.org", "correct horse", **flags)
    if team:
        Membership.objects.create(team=team, user=user, role=role)
    return user


@pytest.fixture
def owner(team: Team) -> User:
    return _person("owner", team)


@pytest.fixture
def teammate(team: Team) -> User:
    return _person("teammate", team)


@pytest.fixture
def stranger(db) -> User:
    """Signed in, and a member of another team."""
    return _person("stranger", Team.objects.create(name="Oncology", slug="oncology"))


@pytest.fixture
def admin(db) -> User:
    return _person("admin", is_staff=True, is_superuser=True)


def browser_of(user: User | None) -> Client:
    """A test client signed in as `user`; nobody for None."""
    client = Client()
    if user is not None:
        client.force_login(user)
    return client


def pytest_sessionfinish() -> None:
    """Leave no folder behind: the first process of the run made the home, and removes it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        import shutil

        shutil.rmtree(os.environ["TRAINMASTER_TEST_HOME"], ignore_errors=True)

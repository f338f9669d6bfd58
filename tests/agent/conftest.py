"""The agent's far end: a real Valkey with a node's exact rights, and a small HTTP server that speaks the node protocol."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from celery import Celery
from kombu import Connection

from tests.agent.far_end import FarEnd
from trainer.agent.home import Home, Identity
from trainer.message import Message
from trainer.protocol import STREAM_KINDS, TASK_QUEUE, TASKS, TELEMETRY_STREAM, key_prefix

CREDENTIALS = {"TRAINMASTER_TOKEN": "tm_x", "AWS_SECRET_ACCESS_KEY": "x", "DATABASE_URL": "x"}
"""In the environment of every agent; no runner may see them."""


def acl_of(node_id: str, secret: str) -> list[str]:
    """The rights of a node, as `webapp.fleet.broker_users` gives them."""
    return (
        f"reset on >{secret} ~n:{node_id}:* resetchannels &n:{node_id}:* &n:{node_id}:/0.celery.pidbox -@all +@read "
        f"+@write +@connection +@pubsub +@transaction +@scripting -@dangerous +info +time "
        f"-scan -randomkey -dbsize -pubsub -function -script|flush -client|tracking"
    ).split()


def eventually(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the first true answer of `check`; fail when none comes in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {check}")


class AgentUnderTest:
    """A real agent process of the node `node_id`, and what one can see of it from outside."""

    def __init__(self, node_id: str, home: Path, far_end: FarEnd, broker: redis.Redis, broker_url: str) -> None:
        self.node_id = node_id
        self.home = home
        self.far_end = far_end
        self._broker = broker
        self._broker_url = broker_url
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.parent / f"{home.name}.log"

    def spawn(self, **environment: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer.agent", "--home", str(self.home)],
                stdout=log,
                stderr=log,
                env={**os.environ, **CREDENTIALS, "OMP_NUM_THREADS": "1", **environment},
            )

    def start(self, *, warm: bool = True, **environment: str) -> None:
        """Start the agent and wait until it is up and, for tests that run something, its runners are warm."""
        known = len(self.heartbeats())
        before = self._warm_starts()
        self.spawn(**environment)
        eventually(lambda: len(self.heartbeats()) > known and (not warm or self._warm_starts() > before), 60)

    def _warm_starts(self) -> int:
        return self.log.read_text().count("Runners are warm") if self.log.exists() else 0

    def send(self, message: Message) -> None:
        """Put a task into the node's queue, as the server does."""
        name = next(name for name, model in TASKS.items() if model is type(message))
        options = {"global_keyprefix": key_prefix(self.node_id)}
        with Connection(self._broker_url, transport_options=options) as connection:
            Celery(set_as_current=False).send_task(
                name, [message.model_dump(mode="json")], queue=TASK_QUEUE, connection=connection, ignore_result=True
            )

    @property
    def entries(self) -> list[tuple[str, Message, bytes]]:
        """All that the node has told: (id, message, data)."""
        raw = self._broker.xrange(key_prefix(self.node_id) + TELEMETRY_STREAM)
        return [
            (
                entry_id.decode(),
                STREAM_KINDS[fields[b"kind"].decode()].model_validate_json(fields[b"head"]),
                fields.get(b"data", b""),
            )
            for entry_id, fields in raw
        ]

    def told(self, model: type[Message], **fields: Any) -> list[Any]:
        """The node's messages of one kind whose fields have these values."""
        return [
            message
            for _, message, _ in self.entries
            if isinstance(message, model) and all(getattr(message, name) == value for name, value in fields.items())
        ]

    def heartbeats(self) -> list[Any]:
        from trainer.protocol import Heartbeat

        return self.told(Heartbeat)

    @property
    def family(self) -> list[psutil.Process]:
        """The agent's descendants, runners among them. The forkserver is their parent."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def runners(self, attempt_id: int) -> list[int]:
        """Process ids of an attempt's runners."""
        return [int(note.name.removeprefix("pid-")) for note in (self.home / "runs" / str(attempt_id)).glob("pid-*")]

    def stop(self) -> float:
        """End the agent in good order; return the seconds that it took."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        return time.monotonic() - started

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def node_broker(broker_url: str) -> Iterator[redis.Redis]:
    """The server's own client of the broker. Nothing in the broker is emptied under a running agent."""
    with redis.Redis.from_url(broker_url) as client:
        yield client


@pytest.fixture(scope="module")
def shared_far_end(broker_url: str) -> Iterator[FarEnd]:
    server = FarEnd(broker_url)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def far_end(shared_far_end: FarEnd) -> FarEnd:
    """The far end without what earlier tests left in it."""
    shared_far_end.reset()
    return shared_far_end


@contextlib.contextmanager
def agents(
    node_broker: redis.Redis, broker_url: str, far_end: FarEnd, folder: Path
) -> Iterator[Callable[..., AgentUnderTest]]:
    """Make enrolled agents, each with a home and a confined broker user; none outlives the block."""
    made: list[AgentUnderTest] = []

    def make(name: str = "node-1", *, start: bool = True, toml: str = "", server_url: str = "") -> AgentUnderTest:
        # A new id each time: telemetry and tasks of earlier tests belong to other nodes.
        node_id = str(uuid.uuid4())
        home = Home(folder / name)
        home.config_file.write_text(toml)
        secret = f"tms_{node_id}"
        home.save_identity(Identity(node_id=node_id, name=name, secret=secret, server_url=server_url or far_end.url))
        node_broker.execute_command("ACL", "SETUSER", f"node-{node_id}", *acl_of(node_id, secret))
        far_end.nodes[secret] = name
        agent = AgentUnderTest(node_id, home.path, far_end, node_broker, broker_url)
        made.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in made:
        agent.stop()
        node_broker.execute_command("ACL", "DELUSER", f"node-{agent.node_id}")
        node_broker.delete(key_prefix(agent.node_id) + TELEMETRY_STREAM)


@pytest.fixture
def make_agent(
    node_broker: redis.Redis, broker_url: str, far_end: FarEnd, tmp_path: Path
) -> Iterator[Callable[..., AgentUnderTest]]:
    """Make agents that only this test uses."""
    with agents(node_broker, broker_url, far_end, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def agent(
    node_broker: redis.Redis, broker_url: str, shared_far_end: FarEnd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentUnderTest]:
    """A running agent, warm, shared by a module: each test uses attempts of its own."""
    with agents(node_broker, broker_url, shared_far_end, tmp_path_factory.mktemp("agent")) as make:
        yield make(toml="slots = 8\n")


_numbers = itertools.count(1)


@pytest.fixture
def attempt_id() -> int:
    """The id of an attempt that no other test has."""
    return next(_numbers)

"""`manage.py ingest` as a process: killed at any moment, told to stop, and with a broker or a database that is away."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from tests.ports import free_port
from tests.web.telemetry.conftest import make_points
from webapp.ingest.loop import ALIVE_KEY
from webapp.ingest.streams import stream_key
from webapp.stack.broker import write_broker_config

POINTS = 20
"""Points of an entry."""


class Stack:
    """A broker, a database file, and ingest processes that come and go."""

    def __init__(self, home: Path) -> None:
        self.database = home / "db.sqlite3"
        port = free_port()
        self._broker_command = write_broker_config(folder=home / "broker", port=port, password="secret")
        self.env = os.environ | {
            "TRAINMASTER_HOME": str(home),
            "TRAINMASTER_SECRET_KEY": "only-for-tests",
            "BROKER_URL": f"redis://default:secret@127.0.0.1:{port}/0",
            "DATABASE_URL": f"sqlite:///{self.database}",
            "DJANGO_SETTINGS_MODULE": "webapp.settings",
        }
        self.client = redis.Redis.from_url(self.env["BROKER_URL"])
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start_broker()
        setup = [sys.executable, "-m", "tests.web.telemetry.ingest_setup"]
        out = subprocess.run(setup, env=self.env, check=True, capture_output=True, text=True).stdout
        self.node_id, attempt = out.split()
        self.attempt_id = int(attempt)
        self.num_sent = 0

    def start_broker(self) -> None:
        self.broker = subprocess.Popen(self._broker_command, stdout=subprocess.DEVNULL)
        wait_until(self.broker_answers)

    def broker_answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def start_ingest(self) -> subprocess.Popen[bytes]:
        self.client.delete(ALIVE_KEY)
        process = subprocess.Popen([sys.executable, "manage.py", "ingest"], env=self.env)
        self.processes.append(process)
        wait_until(lambda: self.client.exists(ALIVE_KEY))
        return process

    def send(self, num_entries: int) -> None:
        pipe = self.client.pipeline(transaction=False)
        for _ in range(num_entries):
            first = self.num_sent * POINTS
            points, data = make_points(self.attempt_id, {"loss": [(first + i, float(i)) for i in range(POINTS)]})
            self.num_sent += 1
            fields = {"kind": "points", "head": points.model_dump_json(), "data": data}
            pipe.xadd(stream_key(self.node_id), fields, id=f"1-{self.num_sent}")
        pipe.execute()

    def stored_steps(self) -> list[int]:
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            rows = database.execute("SELECT steps FROM telemetry_chunk").fetchall()
        return sorted(np.concatenate([np.frombuffer(row[0], "<u4") for row in rows]).tolist()) if rows else []

    def is_drained(self) -> bool:
        return len(self.stored_steps()) >= self.num_sent * POINTS

    def stop(self) -> None:
        for process in [*self.processes, self.broker]:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.client.close()


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    stack.stop()


def test_killed_at_any_moment_each_point_is_stored_once(stack: Stack):
    moments = random.Random(0)
    for _ in range(5):
        ingest = stack.start_ingest()
        until = time.monotonic() + moments.uniform(0.1, 0.5)
        while time.monotonic() < until:
            stack.send(5)
        ingest.send_signal(signal.SIGKILL)
        ingest.wait()
        stack.send(3)
    stack.start_ingest()
    wait_until(stack.is_drained)
    wait_until(lambda: stack.client.xlen(stream_key(stack.node_id)) == 0)
    assert stack.stored_steps() == list(range(stack.num_sent * POINTS))


def test_the_broker_and_the_database_may_go_away(stack: Stack):
    ingest = stack.start_ingest()
    stack.send(2)
    wait_until(stack.is_drained)
    # Another process holds the database for longer than ingest waits at a time.
    database = sqlite3.connect(stack.database, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    stack.send(2)
    time.sleep(1.5)
    database.execute("COMMIT")
    database.close()
    wait_until(stack.is_drained)
    # The broker is killed and started again: it has its append-only file, and ingest its cursors.
    stack.broker.kill()
    stack.broker.wait()
    time.sleep(0.5)
    stack.start_broker()
    stack.send(2)
    wait_until(stack.is_drained)
    assert ingest.poll() is None
    assert stack.stored_steps() == list(range(6 * POINTS))
    # SIGTERM ends it in time.
    started = time.monotonic()
    ingest.terminate()
    assert ingest.wait(timeout=5) == 0
    assert time.monotonic() - started < 4  # 0.2 s on a quiet machine

"""A runner that misbehaves: it floods, prints 10 MB without a newline, ignores SIGTERM, dies. Real processes and pipes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent import noisy
from tests.agent.conftest import eventually
from tests.agent.jobs import federated_spec
from trainer.agent.runner import Runner
from trainer.agent.work import ClientWork, TrainCommand
from trainer.data.source import Source
from trainer.message import Message
from trainer.protocol import LogLine, Logs
from trainer.sources import BUILTIN_SOURCES


class Posted:
    """What a runner posted."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def __call__(self, message: Message, _data: bytes) -> None:
        self.messages.append(message)

    @property
    def lines(self) -> list[LogLine]:
        return [line for message in self.messages if isinstance(message, Logs) for line in message.lines]

    @property
    def dropped(self) -> int:
        return sum(message.dropped for message in self.messages if isinstance(message, Logs))


@pytest.fixture
def posted() -> Posted:
    return Posted()


@pytest.fixture
def start(tmp_path: Path, posted: Posted, monkeypatch: pytest.MonkeyPatch):
    """Start a runner that does as told."""
    monkeypatch.setattr("trainer.agent.runner.child.main", noisy.main)
    started: list[Runner] = []

    def start(what: str) -> Runner:
        work = ClientWork(
            attempt_id=1,
            spec=federated_spec(),
            source=Source(description=BUILTIN_SOURCES["digits"]),
            log_source="node-1",
            client=0,
            num_clients=2,
            threads=1,
            kept=tmp_path / "kept",
            environment={"RUNNER_DOES": what},
        )
        started.append(Runner(work, tmp_path, posted))
        return started[-1]

    yield start
    for runner in started:
        runner.stop()


Start = Callable[[str], Runner]


def test_output_of_every_kind_becomes_lines(start: Start, posted: Posted) -> None:
    runner = start("print")
    assert runner.ended.wait(30)
    assert [line.text for line in posted.lines[:3]] == ["hello", "careful", "from below Python"]


def test_a_flood_neither_blocks_nor_passes(start: Start, posted: Posted) -> None:
    runner = start("flood")
    assert runner.ended.wait(60)
    assert posted.dropped > 900_000
    noise = [line for line in posted.lines if line.text == "noise"]
    assert len(noise) + posted.dropped == 1_000_000


def test_a_line_of_ten_megabytes_is_cut_with_a_note(start: Start, posted: Posted) -> None:
    runner = start("long line")
    assert runner.ended.wait(60)
    assert posted.lines[0].text.endswith(" ... [cut: this line has 10,000,000 bytes]")
    assert posted.lines[1].text == "after"


def test_stop_ends_a_whole_group_that_ignores_sigterm(start: Start, posted: Posted) -> None:
    runner = start("ignore TERM")
    eventually(lambda: any(line.text == "ready" for line in posted.lines), 30)
    started = time.monotonic()
    runner.stop()
    assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        eventually(lambda: os.killpg(runner.pid, 0), 2)


def test_an_end_without_a_word_has_a_reason(start: Start, posted: Posted, tmp_path: Path) -> None:
    runner = start("exit")
    assert runner.ended.wait(30)
    assert runner.reason == "The runner ended by itself with exit code 3."
    assert posted.lines[-1].text == runner.reason
    with pytest.raises(Exception, match="exit code 3"):
        runner.train_round(TrainCommand(round=1, weights=tmp_path, update=tmp_path))
    assert list(tmp_path.glob("pid-*")) == []

"""The way of simulated rounds to the server: through an outage, and past a clone that deletes equal bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.agent import round_poster
from trainer.agent.round_poster import DELIVERIES, RoundPoster
from trainer.agent.server import ServerUnavailable
from trainer.message import BlobRef
from trainer.protocol import Verdict
from trainer.simulation.messages import RoundStart, SimulatedClient, SimulatedRound, SimulatedRounds
from trainer.simulation.plan import RoundPack, SimulationPlan

WAIT_SECONDS = 30


class FarServer:
    """The server and its blobs. What it is asked meets `answer`; patience with it ends at once."""

    def __init__(self) -> None:
        self.delivered: list[str] = []
        self.posted: list[list[int]] = []
        self.answer: Callable[[], Verdict] = lambda: Verdict(accepted=True)

    def deliver(self, path: Path, _stop: threading.Event) -> str:
        assert path.exists()
        self.delivered.append(path.name)
        return "a" * 64

    def post_simulated(self, _attempt_id: int, message: SimulatedRounds) -> Verdict:
        self.posted.append([said.round for said in message.rounds])
        return self.answer()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> FarServer:
    monkeypatch.setattr(round_poster, "patiently", lambda call, _stop: call())
    return FarServer()


@pytest.fixture
def poster(far: FarServer, tmp_path: Path) -> Iterator[RoundPoster]:
    start = RoundStart(round=1, last_round=100, weights=BlobRef(digest="b" * 64, size_bytes=1))
    plan = SimulationPlan(start=start, folder=tmp_path, kept=tmp_path / "kept")
    stopped = threading.Event()
    node = cast(Any, SimpleNamespace(blobs=far, server=far))
    poster = RoundPoster(node, 1, plan, stopped, lambda: None)
    yield poster
    stopped.set()
    poster.finish()


def pack(folder: Path, number: int) -> RoundPack:
    weights = folder / f"weights-{number}.safetensors"
    weights.write_bytes(b"weights")
    client = SimulatedClient(client=0, num_examples=1, num_steps=1)
    said = SimulatedRound.of([client], {}, round=number, opened_ms=0, closed_ms=1, metrics={})
    return RoundPack(rounds=[said], weights=weights)


def weights_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("weights-*"))


def test_an_outage_ends_nothing_and_leaves_one_file_waiting(
    far: FarServer, poster: RoundPoster, tmp_path: Path
) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def away() -> Verdict:
        asked.set()
        assert may_answer.wait(WAIT_SECONDS)
        if len(far.posted) < 4:  # longer than any patience
            raise ServerUnavailable("The server starts.")
        return Verdict(accepted=True)

    far.answer = away
    poster.put(pack(tmp_path, 1))
    assert asked.wait(WAIT_SECONDS)
    for number in (2, 3, 4):
        poster.put(pack(tmp_path, number))
    assert weights_in(tmp_path) == ["weights-1.safetensors", "weights-4.safetensors"]
    may_answer.set()
    poster.finish()
    assert poster.problem == ""
    assert far.posted == [[1], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert weights_in(tmp_path) == []
    assert (tmp_path / "recorded").read_text() == "4"


def test_more_than_a_message_takes_is_posted_in_order(
    far: FarServer, poster: RoundPoster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_poster, "POST_BYTES", 1)
    for number in (1, 2, 3):
        poster.put(pack(tmp_path, number))
    poster.finish()
    assert far.posted == [[1], [2], [3]]


def test_bytes_that_a_clone_deleted_are_delivered_again(far: FarServer, poster: RoundPoster, tmp_path: Path) -> None:
    verdicts = [Verdict(accepted=True), *[Verdict(accepted=False, reason="Send them.", missing_bytes=True)] * 2]
    far.answer = verdicts.pop
    poster.put(pack(tmp_path, 1))
    poster.finish()
    assert poster.problem == ""
    assert len(far.delivered) == 3
    assert (tmp_path / "recorded").read_text() == "1"


def test_bytes_that_are_never_there_are_a_problem(far: FarServer, poster: RoundPoster, tmp_path: Path) -> None:
    far.answer = lambda: Verdict(accepted=False, reason="Send them.", missing_bytes=True)
    poster.put(pack(tmp_path, 1))
    poster.finish()
    assert poster.problem == "The rounds could not be given to the server: Send them."
    assert len(far.delivered) == DELIVERIES

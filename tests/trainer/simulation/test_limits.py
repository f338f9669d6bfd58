"""What a simulation may take: time of its ranks, bytes of its messages, and what is lost with a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.simulation.worlds import alone, plan_of, small_spec, start_of
from trainer.simulation.kept import take_up
from trainer.simulation.plan import RoundPack
from trainer.simulation.tell import LABEL_BYTES, Teller
from trainer.simulation.world import PATIENCE, patience_of
from trainer.telemetry import MetricLog


def test_ranks_wait_as_long_as_the_server() -> None:
    for seconds, waits in [(60, PATIENCE.total_seconds()), (86_400, 2 * 86_400)]:
        federated = small_spec(round_deadline_seconds=seconds).federated
        assert federated is not None
        assert patience_of(federated).total_seconds() == waits


@pytest.mark.parametrize("num_classes", [10, 2000])
def test_label_counts_that_no_message_takes_are_left_out(num_classes: int, tmp_path: Path) -> None:
    spec, packs = small_spec(), list[RoundPack]()
    teller = Teller(
        spec, plan_of(spec, tmp_path), lambda name: MetricLog(1, name, lambda _head, _data: None), packs.append
    )
    counts = [{f"class {number}": 1 for number in range(num_classes)}] * 100
    teller.tell_labels(counts)
    assert teller._label_counts == (counts if num_classes == 10 else None)
    assert LABEL_BYTES < 1_000_000


def test_what_clients_kept_on_another_node_is_missed_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = small_spec(strategy={"name": "scaffold"}, rounds=3)
    first = alone(spec, tmp_path / "first", start=start_of(spec, last_round=2))
    assert "they start as new" not in caplog.text
    lost = {"start": start_of(spec, round=3), "weights": first.packs[-1].weights, "memory": first.packs[-1].memory}
    alone(spec, tmp_path / "same", kept=tmp_path / "first" / "kept", **lost)
    assert "they start as new" not in caplog.text
    alone(spec, tmp_path / "another", **lost)
    assert "What the clients kept of rounds before 3 is lost, and they start as new" in caplog.text


def test_nothing_is_missed_before_the_first_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    take_up(tmp_path, 1)
    assert not caplog.text

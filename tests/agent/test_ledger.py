"""The ledger alone: what it adds up, what it refuses, and what a crash may leave in its file."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.agent.jobs import federated_spec
from tests.agent.ledgers import COST, a_round, charge, file_of, ledger_in
from trainer.agent.config import Budget
from trainer.agent.ledger import LedgerBroken, read_charges
from trainer.agent.node import Refused
from trainer.federated.row_privacy import epsilon_of


def budget(max_epsilon: float = 8.0, **options: Any) -> Budget:
    return Budget(source="digits", max_epsilon=max_epsilon, **options)


def of_rounds(num: int, delta: float) -> float:
    return epsilon_of([COST._replace(steps=3 * num)], delta)


def test_a_job_is_told_what_it_has_spent_itself_at_its_own_delta(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, budget(100.0))
    assert charge(ledger, a_round(1)) == pytest.approx(of_rounds(1, 1e-4))
    assert charge(ledger, a_round(2)) == pytest.approx(of_rounds(2, 1e-4))
    assert charge(ledger, a_round(3, attempt_id=2)) == pytest.approx(of_rounds(3, 1e-4))
    assert charge(ledger, a_round(1, job_id=2)) == pytest.approx(of_rounds(1, 1e-4))
    [spent] = ledger.budgets()
    assert spent.spent_epsilon == pytest.approx(of_rounds(4, 1e-5))  # of both jobs, at the budget's delta


def test_an_agent_that_starts_anew_goes_on_with_what_is_written(tmp_path: Path) -> None:
    charge(ledger_in(tmp_path), a_round(1))
    again = ledger_in(tmp_path, budget())
    assert again.budgets()[0].spent_epsilon == pytest.approx(of_rounds(1, 1e-5))
    assert charge(again, a_round(1)) == pytest.approx(of_rounds(2, 1e-4))  # trained again, charged again


def test_jobs_of_another_server_are_others_and_spend_the_same_budget(tmp_path: Path) -> None:
    charge(ledger_in(tmp_path), a_round(1))
    moved = ledger_in(tmp_path, budget(), node_id="id-2")
    assert charge(moved, a_round(1)) == pytest.approx(of_rounds(1, 1e-4))
    assert moved.budgets()[0].spent_epsilon == pytest.approx(of_rounds(2, 1e-5))


def test_a_round_that_would_overspend_is_refused_and_not_charged(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, budget(of_rounds(2, 1e-5) * 1.0001))
    charge(ledger, a_round(1))
    charge(ledger, a_round(2))
    before = file_of(tmp_path).read_bytes()
    with pytest.raises(Refused) as refused:
        charge(ledger, a_round(3))
    sentence = str(refused.value)
    assert sentence.startswith("node-1 refused round 3 before training: its privacy budget for 'digits' is epsilon ")
    assert "Raise the noise multiplier" in sentence
    assert file_of(tmp_path).read_bytes() == before
    # One with more noise fits no better: Renyi divergences only grow. Another source has no budget.
    charge(ledger, a_round(3, source="diabetes"))


def test_a_budget_takes_only_jobs_that_bound_what_they_take(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, budget())
    with pytest.raises(Refused, match="node-1 keeps a privacy budget for 'digits', and this job has no bound"):
        ledger.check(federated_spec())
    ledger.check(federated_spec(data={"source": "diabetes"}))
    ledger.check(a_round().spec)
    ledger_in(tmp_path).check(federated_spec())


def test_a_plain_job_costs_nothing(tmp_path: Path) -> None:
    plain = a_round().model_copy(update={"spec": federated_spec()})
    assert ledger_in(tmp_path).charge(plain, lambda: pytest.fail("asked for rows")) is None
    assert not (tmp_path / "ledger").exists()


def test_charges_of_two_attempts_at_once_are_all_counted_and_never_overspend(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, budget(of_rounds(5, 1e-5) * 1.0001))
    together, refused = threading.Barrier(8), []

    def work(attempt_id: int) -> None:
        together.wait()
        try:
            charge(ledger, a_round(attempt_id=attempt_id))
        except Refused:
            refused.append(attempt_id)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    charges, _ = read_charges(file_of(tmp_path))
    assert (len(charges), len(refused)) == (5, 3)
    assert {c.attempt for c in charges} | set(refused) == set(range(8))
    assert ledger.budgets()[0].spent_epsilon == pytest.approx(of_rounds(5, 1e-5))


@pytest.mark.parametrize("torn", [b'{"time": "2026-11-', b"\x00" * 40])
def test_a_torn_last_line_is_left_out_with_a_warning_and_overwritten(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    charge(ledger_in(tmp_path), a_round(1))
    with file_of(tmp_path).open("ab") as file:
        file.write(torn)
    again = ledger_in(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert charge(again, a_round(2)) == pytest.approx(of_rounds(2, 1e-4))
    assert "is torn, and left out" in caplog.text
    caplog.clear()
    assert len(read_charges(file_of(tmp_path))[0]) == 2
    assert not caplog.text


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    """An editor may have taken the newline away."""
    charge(ledger_in(tmp_path), a_round(1))
    file_of(tmp_path).write_bytes(file_of(tmp_path).read_bytes().rstrip(b"\n"))
    charge(ledger_in(tmp_path), a_round(2))
    assert [c.round for c in read_charges(file_of(tmp_path))[0]] == [1, 2]


def test_a_damaged_line_before_the_last_stops_everything(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    charge(ledger, a_round(1))
    charge(ledger, a_round(2))
    lines = file_of(tmp_path).read_text().splitlines()
    file_of(tmp_path).write_text("\n".join(["{}", lines[1], ""]))
    with pytest.raises(LedgerBroken, match=r"is damaged: line 1 cannot be read\. Bring the file back"):
        ledger_in(tmp_path, budget()).budgets()
    with pytest.raises(Refused, match="The privacy ledger of 'digits' on node-1 is damaged"):
        charge(ledger_in(tmp_path), a_round(3))


def test_a_complete_last_line_that_cannot_be_read_was_not_torn(tmp_path: Path) -> None:
    """Its round may have trained: leaving it out would forget what was spent."""
    charge(ledger_in(tmp_path), a_round(1))
    with file_of(tmp_path).open("ab") as file:
        file.write(b"\x00\xff\n")
    with pytest.raises(LedgerBroken, match=r"is damaged: line 2 cannot be read"):
        read_charges(file_of(tmp_path))


def test_what_could_not_be_written_is_not_trained_and_the_file_says_what_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_in(tmp_path)
    charge(ledger, a_round(1))

    def full(_descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.agent.ledger.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            charge(ledger, a_round(2))
    # The line may have reached the disk or not: here it has.
    assert charge(ledger, a_round(2)) == pytest.approx(of_rounds(3, 1e-4))


def test_the_clock_says_nothing(tmp_path: Path) -> None:
    charge(ledger_in(tmp_path), a_round(1))
    line = json.loads(file_of(tmp_path).read_text())
    file_of(tmp_path).write_text(json.dumps(line | {"time": "2001-01-01T00:00:00Z"}) + "\n")
    assert charge(ledger_in(tmp_path), a_round(2)) == pytest.approx(of_rounds(2, 1e-4))


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    charge(ledger_in(tmp_path), a_round(1))
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert file_of(tmp_path).parent.stat().st_mode & 0o777 == 0o700

"""`trainmaster node budget`: what is spent, for the owner at the terminal."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from tests.agent.ledgers import COST, a_round, charge, file_of, ledger_in
from trainer.cli import app
from trainer.federated.row_privacy import epsilon_of


def budget_of(home: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["node", "budget", "--home", str(home)])
    return result.exit_code, result.output.strip()


def test_what_is_spent(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[[budgets]]\nsource = "digits"\nmax_epsilon = 20\n')
    ledger = ledger_in(tmp_path)
    charge(ledger, a_round(1))
    charge(ledger, a_round(2))
    charge(ledger, a_round(1, job_id=2))
    charge(ledger, a_round(1, source="diabetes"))
    three, one = (epsilon_of([COST._replace(steps=3 * num)], 1e-5) for num in (3, 1))
    status, said = budget_of(tmp_path)
    assert status == 0
    assert said.splitlines() == [
        f"diabetes: epsilon {one:.3g}, no budget at delta 1e-05; 1 round of 1 job",
        f"digits: epsilon {three:.3g} of 20 at delta 1e-05; 3 rounds of 2 jobs",
    ]


def test_before_anything(tmp_path: Path) -> None:
    assert budget_of(tmp_path) == (
        0,
        "No data source has a budget, and no job has trained with local differential privacy.",
    )
    (tmp_path / "node.toml").write_text('[[budgets]]\nsource = "digits"\nmax_epsilon = 2.5\ndelta = 1e-4\n')
    assert budget_of(tmp_path) == (0, "digits: epsilon 0 of 2.5 at delta 0.0001; 0 rounds of 0 jobs")


def test_a_damaged_ledger_is_a_sentence(tmp_path: Path) -> None:
    charge(ledger_in(tmp_path), a_round(1))
    file_of(tmp_path).write_text("no\n" + file_of(tmp_path).read_text())
    status, said = budget_of(tmp_path)
    assert status == 1
    assert "is damaged: line 1 cannot be read" in said

"""Ledgers and the rounds that they are charged for, without an agent."""

from __future__ import annotations

from pathlib import Path

from tests.agent.jobs import federated_spec
from trainer.agent.config import Budget
from trainer.agent.ledger import Ledger
from trainer.federated.row_privacy import Cost
from trainer.message import BlobRef
from trainer.protocol import TrainRound

NUM_ROWS = 100
COST = Cost(1.0, 0.32, 3)
"""Of one round of `a_round()`: 100 rows in batches of 32."""


def a_round(number: int = 1, *, noise: float = 1.0, source: str = "digits", **numbers: int) -> TrainRound:
    spec = federated_spec(
        data={"source": source, "scaling": "none"},
        federated={"clients": {"num": 2}, "local_privacy": {"noise_multiplier": noise, "delta": 1e-4}},
    )
    nothing = BlobRef(digest="0" * 64, size_bytes=0)
    return TrainRound(
        **{"job_id": 1, "attempt_id": 1, "client": 0, "num_clients": 2} | numbers,
        round=number,
        spec=spec,
        weights=nothing,
    )


def ledger_in(folder: Path, *budgets: Budget, node_id: str = "id-1") -> Ledger:
    return Ledger(folder / "ledger", budgets, name="node-1", node_id=node_id)


def charge(ledger: Ledger, message: TrainRound) -> float:
    epsilon = ledger.charge(message, lambda: NUM_ROWS)
    assert epsilon is not None
    return epsilon


def file_of(folder: Path) -> Path:
    return folder / "ledger" / "digits.jsonl"

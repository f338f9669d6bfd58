"""The node's privacy ledger: what jobs have spent of each data source's rows, kept and enforced here.

A round is charged before it trains, and nothing is ever taken back: a crash in between leaves a charge too many, never one too
few. Each source has a file of its own in the home, a line a charge. What a line says is added up as Renyi divergences
(`trainer/federated/row_privacy.py`); its time is for people only.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.agent.config import Budget
from trainer.agent.home import AgentError
from trainer.agent.node import Refused
from trainer.federated.row_privacy import Cost, epsilon_of, round_cost
from trainer.protocol import SourceBudget, TrainRound
from trainer.sections.disagreement import counted
from trainer.spec import JobSpec

logger = logging.getLogger(__name__)

DELTA_SHOWN = 1e-5
"""At which the owner is told what is spent of a source without a budget."""


class Charge(BaseModel):
    """One line: a round that a client of a job trained, or was about to."""

    model_config = ConfigDict(frozen=True)

    time: datetime
    node: str
    """Id of this node at the time: to another server, the jobs' numbers mean other jobs."""
    job: int
    attempt: int
    round: int
    client: int
    noise_multiplier: float
    sample_rate: float
    steps: int

    @property
    def cost(self) -> Cost:
        return Cost(self.noise_multiplier, self.sample_rate, self.steps)


class LedgerBroken(AgentError):
    """A complete line cannot be read, so that nobody knows what is spent."""


def read_charges(file: Path) -> tuple[list[Charge], int]:
    """Return the charges in a ledger's file, and how many of its bytes they take; none where there is no file.

    A last line that cannot be read and has no end was torn when the machine lost power: its round never trained, and it is left
    out with a warning. Raises LedgerBroken where another one is wrong.
    """
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise LedgerBroken(f"The privacy ledger {file} cannot be read: {error.strerror}.") from None
    charges: list[Charge] = []
    for number, line in enumerate(lines, 1):
        try:
            charges.append(Charge.model_validate_json(line))
        except ValidationError:
            if not line.endswith(b"\n"):  # only the last one can be
                logger.warning("The last line of the privacy ledger %s is torn, and left out.", file)
                return charges, sum(map(len, lines[:-1]))
            raise LedgerBroken(
                f"The privacy ledger {file} is damaged: line {number} cannot be read. Bring the file back from a backup."
            ) from None
    return charges, sum(map(len, lines))


def total_cost(costs: Iterable[Cost]) -> list[Cost]:
    """Return the same cost in few terms: steps with the same noise and rate together."""
    steps: Counter[tuple[float, float]] = Counter()
    for cost in costs:
        steps[cost.noise_multiplier, cost.sample_rate] += cost.steps
    return [Cost(noise, rate, num) for (noise, rate), num in steps.items()]


def describe_ledger(folder: Path, budgets: Iterable[Budget]) -> list[str]:
    """Return a line for each source that has a budget or charges, for the owner. Raises LedgerBroken."""
    by_source = {budget.source: budget for budget in budgets}
    lines = []
    for source in sorted({file.stem for file in folder.glob("*.jsonl")} | by_source.keys()):
        charges, _ = read_charges(folder / f"{source}.jsonl")
        budget = by_source.get(source)
        delta = budget.delta if budget else DELTA_SHOWN
        spent = epsilon_of(total_cost(charge.cost for charge in charges), delta)
        limit = f" of {budget.max_epsilon:g}" if budget else ", no budget"
        jobs = len({(charge.node, charge.job) for charge in charges})
        lines.append(
            f"{source}: epsilon {spent:.3g}{limit} at delta {delta:g}; {counted(len(charges), 'round')} of {counted(jobs, 'job')}"
        )
    return lines or ["No data source has a budget, and no job has trained with local differential privacy."]


class Ledger:
    """The ledger of a running agent, which has the home for itself. Safe to use from many threads."""

    def __init__(self, folder: Path, budgets: Iterable[Budget], *, name: str, node_id: str) -> None:
        """`name` and `node_id` are the node's."""
        self._folder = folder
        self._budgets = {budget.source: budget for budget in budgets}
        self._name = name
        self._node_id = node_id
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()

    def check(self, spec: JobSpec) -> None:
        """Raise Refused where the job's source has a budget, and the job no bound on what it learns of single rows."""
        if spec.data.source in self._budgets and not (spec.federated and spec.federated.local_privacy):
            raise Refused(
                f"{self._name} keeps a privacy budget for '{spec.data.source}', and this job has no bound on what it learns of "
                "single rows: train a federated job with local differential privacy on it."
            )

    def charge(self, message: TrainRound, num_rows: Callable[[], int]) -> float | None:
        """Write down what training the round will cost, before it trains. Returns epsilon of the job so far, at its own delta.

        `num_rows` gives the client's training rows, and may wait. None, and no charge, for a job without local privacy.
        Raises Refused where the budget would be overspent: nothing is charged then.
        """
        spec = message.spec
        if spec.federated is None or spec.federated.local_privacy is None:
            return None
        cost = round_cost(spec.federated, spec.training.batch_size, num_rows())
        source = spec.data.source
        charge = Charge(
            time=datetime.now(UTC),
            node=self._node_id,
            job=message.job_id,
            attempt=message.attempt_id,
            round=message.round,
            client=message.client,
            **cost._asdict(),
        )
        with self._lock:
            try:
                account = self._account(source)
            except LedgerBroken as error:
                logger.error("%s", error)
                raise Refused(
                    f"The privacy ledger of '{source}' on {self._name} is damaged: its log says where."
                ) from None
            if budget := self._budgets.get(source):
                self._check_budget(budget, account, charge)
            try:
                account.add(charge)
            except OSError:
                # How much of the line is on the disk, only the file knows.
                del self._accounts[source]
                raise
            return account.epsilon_of_job(charge, spec.federated.local_privacy.delta)

    def budgets(self) -> list[SourceBudget]:
        """Return the budgets and what is spent of each. Raises LedgerBroken."""
        with self._lock:
            return [
                SourceBudget(
                    source=budget.source,
                    max_epsilon=budget.max_epsilon,
                    delta=budget.delta,
                    spent_epsilon=self._account(budget.source).epsilon(budget.delta),
                )
                for budget in self._budgets.values()
            ]

    def _check_budget(self, budget: Budget, account: _Account, charge: Charge) -> None:
        total = account.epsilon_with(charge.cost, budget.delta)
        if total > budget.max_epsilon:
            raise Refused(
                f"{self._name} refused round {charge.round} before training: its privacy budget for '{budget.source}' is epsilon "
                f"{budget.max_epsilon:g} at delta {budget.delta:g}, {account.epsilon(budget.delta):.3g} is spent, and the round "
                f"would bring it to {total:.3g}. Raise the noise multiplier of local differential privacy, train fewer rounds "
                "or local epochs, or ask the node's owner for a larger budget."
            )

    def _account(self, source: str) -> _Account:
        if source not in self._accounts:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._accounts[source] = _Account(self._folder / f"{source}.jsonl")
        return self._accounts[source]


class _Account:
    """The charges of one source: in its file, and added up in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        charges, self._end = read_charges(file)
        self._costs = total_cost(charge.cost for charge in charges)
        self._spent: tuple[float, float] | None = None  # (delta, epsilon), as last asked
        self._of_job: defaultdict[tuple[str, int], list[Cost]] = defaultdict(list)
        for charge in charges:
            self._count(charge)

    def epsilon(self, delta: float) -> float:
        """Return what all jobs have spent."""
        if self._spent is None or self._spent[0] != delta:
            self._spent = delta, epsilon_of(self._costs, delta)
        return self._spent[1]

    def epsilon_with(self, cost: Cost, delta: float) -> float:
        """Return what would be spent with one more charge."""
        return epsilon_of([*self._costs, cost], delta)

    def epsilon_of_job(self, charge: Charge, delta: float) -> float:
        """Return what the job of this charge has spent, in all its attempts."""
        return epsilon_of(self._of_job[charge.node, charge.job], delta)

    def add(self, charge: Charge) -> None:
        """Write the charge down. It is on the disk when this returns. Raises OSError."""
        is_new = not self._file.exists()
        with open(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.truncate(self._end)  # a torn line must not become the beginning of this one
            file.seek(max(0, self._end - 1))
            line = charge.model_dump_json().encode() + b"\n"
            file.write(line if file.read(1) in (b"", b"\n") else b"\n" + line)
            self._end = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            folder = os.open(self._file.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self._costs = total_cost([*self._costs, charge.cost])
        self._spent = None
        self._count(charge)

    def _count(self, charge: Charge) -> None:
        key = charge.node, charge.job
        self._of_job[key] = total_cost([*self._of_job[key], charge.cost])

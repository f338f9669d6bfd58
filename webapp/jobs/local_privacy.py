"""What local differential privacy costs the clients of a job: forecast for the form, spent for the job's page.

A page shows as spent what the clients' nodes have said, by their own ledgers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from django.db.models import Min

from trainer.federated.row_privacy import Cost, epsilon_of, round_cost
from trainer.protocol import SourceBudget
from trainer.sources import BUILTIN_SOURCES, SourceSchema, count_client_rows
from trainer.spec import JobSpec
from webapp.fleet.models import Node
from webapp.fleet.selectors import known_sources
from webapp.jobs.models import Job, Participation
from webapp.jobs.templatetags.privacy_ui import epsilon as shown

MOST_CLIENTS_TOLD = 4
"""Clients whose forecast the form tells, those with the fewest rows first: they spend most."""
MOST_WARNINGS = 3
"""Nodes that the form warns of."""


@dataclass(frozen=True)
class ClientForecast:
    """What the job will cost one client."""

    node: str
    """Empty where all clients have an even share."""
    num_rows: int
    epsilon: float


@dataclass(frozen=True)
class LocalForecast:
    """What the job will cost its clients, at its delta."""

    delta: float
    num_rounds: int
    """In which a client takes part, on average."""
    num_planned: int
    clients: list[ClientForecast]
    """By rows, the fewest first: they spend most. None where nobody knows the source."""

    @property
    def most(self) -> ClientForecast | None:
        return self.clients[0] if self.clients else None


@dataclass(frozen=True)
class LocalPrivacy:
    """What the job's page shows."""

    forecast: LocalForecast
    noise_multiplier: float
    max_grad_norm: float
    is_over: bool
    worst: Participation | None
    """The update whose client had spent most of its rows; None before any."""

    @property
    def at_the_end(self) -> float | None:
        """Epsilon of the client that will have spent most. Rounds that were trained twice are spent and not forecast."""
        spent = self.worst.epsilon if self.worst else None
        planned = self.forecast.most.epsilon if self.forecast.most else None
        return max((value for value in (spent, planned) if value is not None), default=None)


def forecast_local(spec: JobSpec, source: SourceSchema, nodes: Iterable[Node]) -> LocalForecast | None:
    """Return what the spec's local privacy will cost on `source`; `nodes` are those that may be clients. None without it."""
    federated = spec.federated
    if federated is None or federated.local_privacy is None:
        return None
    rows = [("", count_client_rows(spec, source))]
    if spec.data.partition.scheme == "natural" and (own := _own_rows(spec, nodes)):
        rows = own
    return _forecast(spec, rows, federated.rounds)


def local_privacy_of(job: Job) -> LocalPrivacy | None:
    """Return what the job's local privacy has cost, and what it will. None without it. At most three queries."""
    federated = job.spec.federated
    if federated is None or federated.local_privacy is None:
        return None
    said = Participation.objects.filter(round__attempt__job=job, epsilon__isnull=False)
    # A refused update has spent as well; of the rows that it claims, nothing is kept.
    fewest = said.filter(num_examples__gt=0).aggregate(fewest=Min("num_examples"))["fewest"]
    schema = None if fewest else _schema_of(job)
    rows = fewest or (schema and count_client_rows(job.spec, schema))
    return LocalPrivacy(
        forecast=_forecast(job.spec, [("", rows)] if rows else [], job.progress_total),
        noise_multiplier=federated.local_privacy.noise_multiplier,
        max_grad_norm=federated.local_privacy.max_grad_norm,
        is_over=job.is_terminal,
        worst=said.select_related("round", "assignment__node").order_by("-epsilon", "-round__number").first(),
    )


def budget_warnings(spec: JobSpec, source: SourceSchema, nodes: Iterable[Node]) -> list[str]:
    """Return a sentence for each node that may be asked and whose owner's privacy budget would refuse the job, or a round of it."""
    named = spec.federated.clients.nodes if spec.federated else ()
    warnings: list[str] = []
    for node in nodes:
        budget = next((b for b in node.facts.budgets if b.source == source.name), None)
        if budget is None or (named and node.name not in named):
            continue
        own = next((s for s in node.facts.sources if s.name == source.name), source)
        if warning := _budget_warning(spec, own, node.name, budget):
            warnings.append(warning)
        if len(warnings) == MOST_WARNINGS:
            break
    return warnings


def told(forecast: LocalForecast | None) -> list[tuple[str, str]]:
    """The forecast in words, for a summary: (subject, sentence)."""
    if forecast is None:
        return []
    clients = forecast.clients[:MOST_CLIENTS_TOLD]
    sizes = [
        f"ε ≤ {shown(c.epsilon)} {f'on {c.node}' if c.node else 'for a client'} ({c.num_rows:,} rows)" for c in clients
    ]
    others = len(forecast.clients) - len(clients)
    more = f", less on {others:,} other{'' if others == 1 else 's'}" if others else ""
    often = (
        f"all {forecast.num_planned:,}"
        if forecast.num_rounds == forecast.num_planned
        else f"about {forecast.num_rounds:,} of {forecast.num_planned:,}"
    )
    return [("Local privacy", f"{', '.join(sizes)}{more}, at δ = {forecast.delta:g} and in {often} rounds")]


def _schema_of(job: Job) -> SourceSchema | None:
    name = job.spec.data.source
    return BUILTIN_SOURCES.get(name) or next((k.schema for k in known_sources(job.team) if k.schema.name == name), None)


def _own_rows(spec: JobSpec, nodes: Iterable[Node]) -> list[tuple[str, int]]:
    """The training rows of each node that declares the source."""
    found = [
        (node.name, count_client_rows(spec, schema))
        for node in nodes
        for schema in node.facts.sources
        if schema.name == spec.data.source
    ]
    return sorted(found, key=lambda row: row[1])


def _forecast(spec: JobSpec, rows: list[tuple[str, int]], num_planned: int) -> LocalForecast:
    federated = spec.federated
    assert federated is not None
    assert federated.local_privacy is not None
    delta = federated.local_privacy.delta
    num_rounds = max(1, round(num_planned * federated.clients.share_drawn))
    clients = [
        ClientForecast(node, num_rows, _epsilon(_cost(spec, num_rows, num_rounds), delta)) for node, num_rows in rows
    ]
    return LocalForecast(delta, num_rounds, num_planned, clients)


def _budget_warning(spec: JobSpec, source: SourceSchema, node: str, budget: SourceBudget) -> str:
    federated = spec.federated
    if federated is None or federated.local_privacy is None:
        return (
            f"{node} takes no part in this job: its owner keeps a privacy budget for '{source.name}', which takes only federated "
            "jobs with local differential privacy."
        )
    before = _as_noise(budget)
    num_rows = count_client_rows(spec, source)

    def total(num_rounds: int) -> float:
        return epsilon_of([*before, _cost(spec, num_rows, num_rounds)], budget.delta)

    num_rounds = max(1, round(federated.rounds * federated.clients.share_drawn))
    within = bisect_left(range(1, num_rounds + 1), True, key=lambda n: total(n) > budget.max_epsilon)
    if within == num_rounds:
        return ""
    when = "every round" if not within else f"its part after about {within:,} of {num_rounds:,} rounds"
    return (
        f"{node} will refuse {when}: its privacy budget for '{source.name}' is ε = {budget.max_epsilon:g}, "
        f"{shown(budget.spent_epsilon)} is spent, and this job would bring it to about {shown(total(num_rounds))}. Raise the "
        "noise multiplier of local differential privacy, plan fewer rounds or local epochs, or leave this node out."
    )


def _as_noise(budget: SourceBudget) -> list[Cost]:
    """One Gaussian mechanism that would have spent as much: what exactly was spent, only the node's ledger knows."""
    if not budget.spent_epsilon:
        return []
    # From 1e-3 to 1e5, in steps of 2 %.
    noises = [1e-3 * 1.02**step for step in range(931)]
    found = bisect_left(noises, True, key=lambda z: epsilon_of([Cost(z, 1.0, 1)], budget.delta) <= budget.spent_epsilon)
    return [Cost(noises[min(found, len(noises) - 1)], 1.0, 1)]


def _cost(spec: JobSpec, num_rows: int, num_rounds: int) -> Cost:
    assert spec.federated is not None
    cost = round_cost(spec.federated, spec.training.batch_size, num_rows)
    return cost._replace(steps=cost.steps * num_rounds)


@lru_cache(maxsize=256)
def _epsilon(cost: Cost, delta: float) -> float:
    """The form asks again after each change of any field."""
    return epsilon_of([cost], delta)

"""What the job page shows of a simulation's rounds: the ledger, the virtual clients of a round, and who holds which labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Min, QuerySet

from trainer.simulation.messages import MOST_CLIENTS_TOLD
from webapp.jobs.models import Job, Round
from webapp.jobs.round_selectors import LabelPicture, draw_labels, norm_bound
from webapp.jobs.simulated_facts import ClientFacts, SimulatedFacts


def ledger_of(job: Job) -> QuerySet[Round]:
    """The rounds, newest first. Their `facts` say what there is to say of their clients."""
    rounds = Round.objects.filter(attempt__job=job).select_related("attempt")
    return rounds.order_by("-attempt__number", "-number")


@dataclass(frozen=True)
class VirtualClient:
    """One virtual client of a round, with what the aggregation says of its update; None where it says nothing."""

    said: ClientFacts
    weight: float | None
    """Share of the update in the result, 0 to 1."""
    is_clipped: bool
    is_left_out: bool


def clients_of(round_: Round, job: Job) -> list[VirtualClient]:
    """The first clients of a round by index, and what came of them. No query."""
    facts = SimulatedFacts.model_validate(round_.facts)
    bound = norm_bound(facts, job)
    weights: Sequence[float | None] = facts.weights or [None] * len(facts.clients)
    return [
        VirtualClient(
            said=said,
            weight=weight,
            is_clipped=bound is not None and (said.norm or 0.0) > bound,
            is_left_out=said.client in (facts.left_out or ()),
        )
        for said, weight in zip(facts.clients, weights, strict=False)
    ]


def labels_of(job: Job) -> LabelPicture:
    """Who holds which labels among the job's first clients, as the newest attempt that said it did. One query."""
    spec = job.spec
    assert spec.federated is not None
    firsts = Round.objects.filter(attempt__job=job).values("attempt").annotate(first=Min("pk")).values("first")
    said = Round.objects.filter(pk__in=firsts, facts__has_key="label_counts").order_by("-attempt__number").first()
    counts = SimulatedFacts.model_validate(said.facts).label_counts if said else None
    total = spec.federated.clients.total
    return draw_labels(
        spec.data.source,
        dict(enumerate(counts or [])),
        {},
        num_drawn=min(total, MOST_CLIENTS_TOLD),
        num_clients=total,
    )

"""What the job page shows of secure aggregation: who must be there, how far the open round is, what was cut."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Count, Q, Sum

from trainer.federated.facts import RoundFacts
from trainer.secure.agreed import threshold_of
from trainer.secure.session import MIN_CLIENTS
from webapp.jobs import secure
from webapp.jobs.models import Job, Participation, Round

MUCH_SATURATED = 0.001
"""From which share of cut parameters on people are warned: the sum is no longer that of the updates as they were."""


@dataclass(frozen=True)
class MaskedSum:
    """The last closed round."""

    number: int
    num_asked: int
    num_survivors: int
    share_saturated: float
    """Of all the parameters of its updates."""

    @property
    def is_much(self) -> bool:
        return self.share_saturated > MUCH_SATURATED


@dataclass(frozen=True)
class Secure:
    """What the panel shows."""

    clip: float
    num_clients: int
    """Of a round: of the newest one, else as planned."""
    threshold: int
    open: Round | None
    """The round that is under way."""
    phase: str
    """What that round does; empty without one, and while its sum is computed."""
    last: MaskedSum | None

    @property
    def num_tolerated(self) -> int:
        """Clients that may drop out of a round."""
        return self.num_clients - max(self.threshold, MIN_CLIENTS)


def is_secure(job: Job) -> bool:
    """Whether the updates of the job come masked."""
    federated = job.spec.federated
    return federated is not None and federated.secure_aggregation is not None


def secure_of(job: Job) -> Secure | None:
    """Return what the panel shows; None, without a query, for a job whose updates are not masked. Else two queries."""
    federated = job.spec.federated
    if federated is None or federated.secure_aggregation is None:
        return None
    rounds = Round.objects.filter(attempt__job=job)
    newest = rounds.order_by("-attempt__number", "-number").first()
    terms = secure.terms_of(newest) if newest else None
    num_clients = terms.num_clients if terms else federated.clients.num_drawn
    chosen = federated.secure_aggregation
    under_way = newest if newest and newest.state in Round.UNDER_WAY and not job.is_terminal else None
    return Secure(
        clip=chosen.clip,
        num_clients=num_clients,
        threshold=threshold_of(chosen.threshold, num_clients),
        open=under_way,
        phase=Round.Phase(under_way.phase).label if under_way and under_way.phase else "",
        last=_last_sum(job),
    )


def _last_sum(job: Job) -> MaskedSum | None:
    returned = Q(participations__state=Participation.State.RETURNED)
    last = (
        Round.objects.filter(attempt__job=job, state=Round.State.CLOSED)
        .annotate(
            num_asked=Count("participations"),
            num_returned=Count("participations", filter=returned),
            num_saturated=Sum("participations__num_saturated", filter=returned),
        )
        .order_by("-number", "-attempt__number")
        .first()
    )
    if last is None:
        return None
    num_values = (RoundFacts.model_validate(last.facts).num_values or 0) * last.num_returned
    share = (last.num_saturated or 0) / num_values if num_values else 0.0
    return MaskedSum(last.number, last.num_asked, last.num_returned, share)

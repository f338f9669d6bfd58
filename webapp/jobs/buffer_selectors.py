"""FedBuff on the job page: rounds by what their buffers counted, and clients by what they are at."""

from __future__ import annotations

from django.db.models import Aggregate, Count, F, FloatField, IntegerField, OuterRef, Q, QuerySet, Subquery, Sum, Value

from webapp.jobs.models import Job, Participation, Round

_State = Participation.State


def buffered_ledger_of(job: Job) -> QuerySet[Round]:
    """As `round_selectors.ledger_of`, with sums over the updates that each round counted, and besides `num_stale`, those of them
    that were trained from older weights, and `num_training`, clients that still train from this round's.

    No overhead is told: who is slow trains beside several rounds.
    """
    counted = Participation.objects.filter(counted_in=OuterRef("pk"), state=_State.RETURNED)
    own = Participation.objects.filter(round=OuterRef("pk"))
    return (
        Round.objects.filter(attempt__job=job)
        .select_related("attempt")
        .annotate(
            num_asked=_over(own, "round", Count("pk")),
            num_training=_over(own, "round", Count("pk", filter=Q(state=_State.ASKED))),
            num_late=_over(own, "round", Count("pk", filter=Q(state=_State.LATE))),
            num_lost=_over(own, "round", Count("pk", filter=Q(state=_State.LOST))),
            num_refused=_over(own, "round", Count("pk", filter=Q(state=_State.REFUSED))),
            num_failed=_over(own, "round", Count("pk", filter=Q(state=_State.FAILED))),
            num_returned=_over(counted, "counted_in", Count("pk")),
            num_stale=_over(counted, "counted_in", Count("pk", filter=~Q(round=F("counted_in")))),
            num_examples=_over(counted, "counted_in", Sum("num_examples")),
            num_bytes_up=_over(counted, "counted_in", Sum("size_bytes")),
            num_bytes_down=_over(counted, "counted_in", Sum("bytes_down")),
            slowest_seconds=Value(None, output_field=FloatField()),
        )
        .order_by("-attempt__number", "-number")
    )


def _over(rows: QuerySet[Participation], group: str, what: Aggregate) -> Subquery:
    """One number over the participations of each round. Two joins at once would count each row of one for each of the other."""
    values = rows.order_by().values(group).annotate(number=what).values("number")
    return Subquery(values, output_field=IntegerField())


def buffered_participations(round_: Round) -> list[Participation]:
    """Who was asked in a round, and whose older update it counted, by client and then by round."""
    shown = Participation.objects.filter(Q(round=round_) | Q(counted_in=round_))
    return list(
        shown.select_related("assignment__node", "round", "counted_in").order_by("assignment__index", "round__number")
    )

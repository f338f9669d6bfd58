"""FedBuff's rows: who is out, and which round takes an update. Torch-free: the door uses it in the web process.

A client is asked once for each version of the weights, and what it returns goes into the buffer of the round that is open then
(`Participation.counted_in`), however old its own round is. Of each client at most one participation is out at any time: the
newest one. Rows are locked in the order attempt, round, participation.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Max, OuterRef, Subquery

from trainer.sections.strategy import FedBuff
from trainer.spec import JobSpec
from webapp.jobs import garbage
from webapp.jobs.dispatch import request
from webapp.jobs.models import Assignment, Attempt, Participation, Round
from webapp.jobs.rounds import open_round

_State = Participation.State


def buffer_of(spec: JobSpec) -> FedBuff | None:
    """The options of FedBuff, where the job trains by it."""
    strategy = spec.federated.strategy if spec.federated else None
    return strategy if isinstance(strategy, FedBuff) else None


def newest_participations(attempt: Attempt) -> list[Participation]:
    """Each client's newest participation, by client, with what their steps need loaded.

    One step into the index of `asked_once_a_round` for each client, however many rounds there were: every look at the attempt
    asks. Of a client's rounds the newest has the highest key, as an attempt's rounds are opened one after the other.
    """
    own = Participation.objects.filter(assignment=OuterRef("pk")).order_by("-round_id")
    newest = Assignment.objects.filter(attempt=attempt).values_list(Subquery(own.values("pk")[:1]))
    rows = Participation.objects.filter(pk__in=newest)
    found = list(rows.select_related("assignment__node", "round").order_by("assignment__index"))
    for row in found:
        row.round.attempt = attempt
    return found


def clients_out(attempt: Attempt) -> set[int]:
    """Indices of the clients that are still at work on an earlier round of the attempt, or whose node is gone with it."""
    return {p.assignment.index for p in newest_participations(attempt) if p.state in Participation.OUT}


def hold_running(attempt_id: int) -> bool:
    """Keep a running attempt from ending, and its rounds from closing, until the transaction does. False where it has ended."""
    held = Attempt.objects.select_for_update().filter(pk=attempt_id, state=Attempt.State.RUNNING)
    return held.first() is not None


def take_update(participation: Participation, **fields: Any) -> bool:
    """Record an update that passed the door, for the open round's buffer. False where it does not count: its client is not out
    any more, or it has become too old and is LATE now.

    While a round is being aggregated none is open: the update waits for the next one (`open_next_round`). Call it in a
    transaction, with `round.attempt.job` loaded.
    """
    own = participation.round
    if not hold_running(own.attempt_id):
        return False
    open_round = Round.objects.select_for_update().filter(attempt=own.attempt_id, state=Round.State.OPEN).first()
    if open_round is not None:
        number = open_round.number
    else:
        number = (own.attempt.rounds.aggregate(last=Max("number"))["last"] or 0) + 1
    let_go(participation)
    if reason := why_stale(participation, number):
        participation.move_to(_State.LATE, reason)
        garbage.delete_on_commit([fields["update_digest"]])
        return False
    return participation.move_to(_State.RETURNED, counted_in=open_round, **fields)


def why_stale(participation: Participation, number: int) -> str:
    """Why round `number` does not take what was trained from the participation's weights; empty where it does."""
    own = participation.round
    chosen = buffer_of(own.attempt.job.spec)
    assert chosen is not None
    behind = number - own.number
    if behind <= chosen.max_staleness:
        return ""
    rounds = "round" if behind == 1 else "rounds"
    return (
        f"It was trained from round {own.number}, {behind:,} {rounds} behind round {number}, and strategy.max_staleness is "
        f"{chosen.max_staleness:,}."
    )


def open_next_round(attempt: Attempt, spec: JobSpec, number: int) -> None:
    """Open the round after one that closes now, in its transaction, which holds the attempt's row.

    Under FedBuff it asks who is idle, and begins with the updates that came while the last one was aggregated.
    """
    if not buffer_of(spec):
        open_round(attempt, spec, number)
        return
    round_ = open_round(attempt, spec, number, busy=clients_out(attempt))
    waiting = Participation.objects.filter(assignment__attempt=attempt, state=_State.RETURNED, counted_in=None)
    if waiting.update(counted_in=round_):
        request("advance_attempt", attempt.pk)


def counted_updates(round_: Round) -> list[Participation]:
    """The updates in a round's buffer, by client and then by the round that each was trained from."""
    rows = list(round_.counted.select_related("assignment__node", "round"))
    for row in rows:
        row.round.attempt = round_.attempt
        row.counted_in = round_
    return sorted(rows, key=lambda row: (row.assignment.index, row.round.number))


def staleness_of(participation: Participation) -> int:
    """Rounds between the weights that an update was trained from and the round that counts it."""
    return participation.counted_in.number - participation.round.number if participation.counted_in else 0


def let_go(participation: Participation) -> None:
    """On commit, delete the weights that a client was the last to need. Those of a round under way stay."""
    garbage.delete_on_commit([participation.round.weights_digest])

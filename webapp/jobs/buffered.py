"""An open round of FedBuff (Nguyen et al. 2022, algorithm 1): clients come and go by themselves, and the buffer decides.

The round closes when its buffer is full. Every client that is idle is asked with the open round's weights, once; who still
trains from older ones goes on, and its update counts when it comes. So a slow client holds up nobody. Each has the round
deadline for itself, from when it was asked; what it then misses is LATE, and it is asked anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.template.defaultfilters import pluralize

from trainer.spec import JobSpec
from webapp.fleet.models import Node
from webapp.jobs.buffer_rows import buffer_of, let_go, newest_participations, why_stale
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.models import Participation, Round
from webapp.jobs.rounds import federated_of, hold_open, invite
from webapp.jobs.settling import (
    GIVE_UP_AFTER,
    WORTH_SAYING_AFTER,
    Verdict,
    chase,
    hard_limit,
    is_given_up,
    shortfall,
    shows_progress,
)
from webapp.jobs.waiting import Waiting, waiting

_State = Participation.State


def tend_buffer(round_: Round, spec: JobSpec, now: datetime) -> tuple[Verdict, Waiting | None]:
    """Chase who is out, ask who is idle, and say what is to be done with the round, or whom it waits for.

    `round_.attempt.job` is loaded. Every step is compare-and-swap, so two callers do no harm.
    """
    attempt = round_.attempt
    clients = newest_participations(attempt)
    chase(clients, spec, now)
    for participation in clients:
        if participation.state in Participation.OUT:
            _check_out(participation, round_, spec, now)
    if any(_is_idle(p, round_) for p in clients):  # mostly not: it costs no lock then
        with transaction.atomic():
            if not hold_open(round_):
                return Verdict("wait"), None  # another worker closes it, or the attempt has ended
            # Who would be asked when the buffer is full is asked a moment later, with newer weights.
            if not _is_full(round_, spec):
                # Looked up again behind the lock: another worker may have asked them.
                idle = [p.assignment.index for p in newest_participations(attempt) if _is_idle(p, round_)]
                invite(round_, spec, idle, now)
            tell_browsers(attempt.job, "rounds")
        clients = newest_participations(attempt)
    return judge_buffer(round_, spec, clients, now), describe_buffer(round_, spec, clients, now)


def judge_buffer(round_: Round, spec: JobSpec, clients: Sequence[Participation], now: datetime) -> Verdict:
    """Decide what to do with the round, from `clients`, the newest participation of each."""
    if _is_full(round_, spec):
        return Verdict("close")
    num_counted = round_.counted.count()
    out = [p for p in clients if p.state in Participation.OUT]
    lost = [p for p in out if p.state == _State.LOST]
    enough = num_counted >= round_.num_quorum
    at_work = any(shows_progress(p, now) for p in out)
    over = now >= hard_limit(round_) or (enough and now >= round_.deadline_at and not at_work)
    gone = len(lost) == len(out) and all(is_given_up(p, now) for p in lost)
    # One that returned just now is asked at the next look.
    if not over and (not gone or any(_is_idle(p, round_) for p in clients)):
        return Verdict("wait")
    if enough:
        return Verdict("close")
    would_do = num_counted + len(lost) >= round_.num_quorum
    return Verdict("lose" if lost and would_do else "fail", shortfall(round_, clients, num_counted, now))


def describe_buffer(round_: Round, spec: JobSpec, clients: Sequence[Participation], now: datetime) -> Waiting | None:
    """How full the buffer is and who is at work, once it is worth saying."""
    chosen = buffer_of(spec)
    assert chosen is not None
    out = [p for p in clients if p.state in Participation.OUT]
    lost = [p for p in out if p.state == _State.LOST]
    if not out or now - round_.opened_at < WORTH_SAYING_AFTER:
        return None
    num_counted = round_.counted.count()
    names = ", ".join(_at_work(p, round_) for p in out)
    what = f"Round {round_.number} has {num_counted:,} of the {chosen.buffer:,} update{pluralize(chosen.buffer)} of its buffer, and waits for {names}."
    if lost:
        what += " " + " ".join(sorted({p.state_reason for p in lost}))
    only_lost = len(lost) == len(out)
    limit = round_.deadline_at if now < round_.deadline_at else hard_limit(round_)
    until = min(limit, max(p.state_changed_at for p in lost) + GIVE_UP_AFTER) if only_lost else limit
    if num_counted >= round_.num_quorum:
        then = f"The round closes with the {num_counted:,} update{pluralize(num_counted)} that {pluralize(num_counted, 'is,are')} in."
    elif only_lost:
        then = "The job queues again, and goes on from the last closed round."
    else:
        until = hard_limit(round_)
        quorum = round_.num_quorum
        then = f"The job fails, unless {quorum:,} update{pluralize(quorum)} {pluralize(quorum, 'is,are')} in by then."
    return waiting(what=what, since=round_.opened_at, until=until, then=then)


def _at_work(participation: Participation, round_: Round) -> str:
    """Such as: node-2 (training from round 3)."""
    name, own = participation.assignment.node.name, participation.round.number
    return name if own == round_.number else f"{name} (training from round {own})"


def _is_full(round_: Round, spec: JobSpec) -> bool:
    chosen = buffer_of(spec)
    assert chosen is not None
    return round_.counted.count() >= chosen.buffer


def _is_idle(participation: Participation, round_: Round) -> bool:
    """Whether the client, whose newest participation this is, may train from the round's weights now."""
    return participation.state not in Participation.OUT and participation.round_id != round_.pk


def _check_out(participation: Participation, round_: Round, spec: JobSpec, now: datetime) -> None:
    """Let one go on whose node is back with its work; give up one that is too old, overdue, or whose work is gone."""
    attempt, node = round_.attempt, participation.assignment.node
    is_older = participation.round_id != round_.pk
    with transaction.atomic():
        if reason := _why_over(participation, round_, spec, now):
            participation.move_to(_State.LATE, reason)
            let_go(participation)
        elif is_older and participation.state == _State.LOST and node.state == Node.State.ONLINE:
            # Of the open round `chase` asks it anew.
            if not hold_open(round_) or not participation.move_to(_State.ASKED, f"{node.name} is back."):
                return
        else:
            return
        tell_browsers(attempt.job, "rounds")


def _why_over(participation: Participation, round_: Round, spec: JobSpec, now: datetime) -> str:
    """Why nobody waits any more for the update of one that is out; empty where somebody does."""
    own, node = participation.round, participation.assignment.node
    is_older = own.pk != round_.pk
    if is_older and (reason := why_stale(participation, round_.number)):
        return reason
    if participation.state == _State.LOST:
        kept = node.boot_id == participation.boot_id and round_.attempt_id in node.running_attempts
        if is_older and node.state == Node.State.ONLINE and not kept:
            return f"{node.name} is back without its work, and is asked anew for round {round_.number}."
        return ""
    limit = timedelta(seconds=federated_of(spec).round_deadline_seconds)
    # Not `asked_at`, which moves when the message is repeated.
    passed = now - participation.state_changed_at
    at_work = shows_progress(participation, now)
    if passed < limit or (at_work and passed < 2 * limit):
        return ""
    seconds = limit.total_seconds()
    if at_work:
        return f"It still made progress, and {2 * seconds:,.0f} s after it was asked are twice the round's deadline."
    return f"It was not in {seconds:,.0f} s after it was asked, and showed no progress."

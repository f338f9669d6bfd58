"""The first phases of a masked round: clients post keys, then shares. Each goes on when it can, and has an end.

What is wanted of a client is its post of the phase; else all is as in a plain round, where an update is wanted
(`webapp.jobs.settling`).
"""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime, timedelta

from django.db import transaction

from trainer.spec import JobSpec
from webapp.jobs import secure
from webapp.jobs.closing import read_participations
from webapp.jobs.dispatch import tell_browsers
from webapp.jobs.models import Participation, Round
from webapp.jobs.settling import WORTH_SAYING_AFTER, Verdict, chase, is_given_up
from webapp.jobs.waiting import Waiting, waiting

EXCHANGE_FOR = timedelta(seconds=10)
"""How long a phase waits for those that are slow, once enough have posted."""

_State = Participation.State
_NEXT = {Round.Phase.KEYS: Round.Phase.SHARES, Round.Phase.SHARES: Round.Phase.UPDATES}
_WANTED = {Round.Phase.KEYS: "keys", Round.Phase.SHARES: "shares"}


def tend_exchange(round_: Round, spec: JobSpec, now: datetime) -> tuple[Verdict, Waiting | None]:
    """Chase who is out, and go on where it is time; else say what is to be done with the round, and whom it waits for."""
    participations = read_participations(round_)
    chase(participations, spec, now)
    posted = secure.posted_in(round_)
    if _go_on(round_, participations, posted, now):
        return Verdict("wait"), None
    return judge(round_, participations, posted, now), describe_wait(round_, participations, posted, now)


def _go_on(round_: Round, participations: list[Participation], posted: Set[int], now: datetime) -> bool:
    """Move the round to its next phase where it is time. Whether it has moved, by this call or another worker's.

    `posted` is what `secure.posted_in` says. Nobody waits for a node that is gone, once enough are in.
    """
    assert round_.phase_at is not None
    slow = any(p.state == _State.ASKED for p in _missing(participations, posted))
    if _num_in(participations, posted) < round_.num_quorum or (slow and now - round_.phase_at < EXCHANGE_FOR):
        return False
    phase = _NEXT[Round.Phase(round_.phase)]
    with transaction.atomic():
        same = Round.objects.filter(pk=round_.pk, state=Round.State.OPEN, phase=round_.phase)
        if not same.update(phase=phase, phase_at=now):
            return True  # another worker was first
        posted = secure.posted_in(round_)  # again: a post may have come at that moment, and none can from here on
        for participation in _missing(participations, posted):
            if participation.state == _State.ASKED:
                participation.move_to(_State.LATE, _why_dropped(round_, now))
            else:  # lost, and no boot of its node has a part in the round any more: nobody waits for it to come back
                Participation.objects.filter(pk=participation.pk, state=_State.LOST).update(boot_id="")
        round_.phase, round_.phase_at = phase, now
        secure.send_phase(round_)
        tell_browsers(round_.attempt.job, "rounds")
    return True


def judge(round_: Round, participations: list[Participation], posted: Set[int], now: datetime) -> Verdict:
    """Decide what to do with a round that exchanges keys or shares, and cannot go on yet. Pure."""
    missing = _missing(participations, posted)
    num_lost = sum(p.state == _State.LOST for p in missing)
    num_in = _num_in(participations, posted)
    possible = num_in + len(missing) >= round_.num_quorum
    gone = num_lost == len(missing) and all(is_given_up(p, now) for p in missing)
    if possible and not gone and now < round_.deadline_at:
        return Verdict("wait")
    would_do = num_in + num_lost >= round_.num_quorum
    names = ", ".join(
        f"{p.assignment.node.name} ({(p.state_reason or 'nothing came').rstrip('.')})"
        for p in participations
        if p.pk not in posted or p.state not in Participation.OUT
    )
    reason = (
        f"Round {round_.number} needed the {_WANTED[Round.Phase(round_.phase)]} of {round_.num_quorum:,} clients of "
        f"{len(participations):,} for its masks and got {num_in:,}. Missing: {names}."
    )
    return Verdict("lose" if would_do else "fail", reason)


def describe_wait(
    round_: Round, participations: list[Participation], posted: Set[int], now: datetime
) -> Waiting | None:
    """Whose keys or shares the round waits for, once it is worth saying."""
    assert round_.phase_at is not None
    missing = _missing(participations, posted)
    lost = [p for p in missing if p.state == _State.LOST]
    if not missing or (not lost and now - round_.phase_at < WORTH_SAYING_AFTER):
        return None
    wanted = _WANTED[Round.Phase(round_.phase)]
    names = ", ".join(p.assignment.node.name for p in missing)
    what = f"Round {round_.number} waits for the {wanted} of {names}."
    if lost:
        what += " " + " ".join(sorted({p.state_reason for p in lost}))
    num_in = _num_in(participations, posted)
    if num_in >= round_.num_quorum:
        until, then = round_.phase_at + EXCHANGE_FOR, f"The round goes on with the {num_in:,} clients that have posted."
    else:
        quorum = f"{round_.num_quorum:,} of {len(participations):,} clients"
        until, then = round_.deadline_at, f"The round ends, unless those of {quorum} are in by then."
    return waiting(what=what, since=round_.phase_at, until=until, then=then)


def _missing(participations: list[Participation], posted: Set[int]) -> list[Participation]:
    """Who may still post, as far as the server knows."""
    return [p for p in participations if p.state in Participation.OUT and p.pk not in posted]


def _num_in(participations: list[Participation], posted: Set[int]) -> int:
    return sum(p.pk in posted and p.state in Participation.OUT for p in participations)


def _why_dropped(round_: Round, now: datetime) -> str:
    assert round_.phase_at is not None
    wanted, seconds = _WANTED[Round.Phase(round_.phase)], (now - round_.phase_at).total_seconds()
    return (
        f"Its {wanted} for the masks of round {round_.number} were not in after {seconds:,.0f} s, and the others went on: "
        "it takes part again in the next round."
    )

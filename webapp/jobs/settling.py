"""An open round: who is out, who is lost and asked again, and when it is time to close it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from django.db import transaction
from django.template.defaultfilters import pluralize

from trainer.spec import JobSpec
from webapp.fleet.models import Node
from webapp.jobs import secure
from webapp.jobs.attempts import why_gone
from webapp.jobs.models import Assignment, Participation, Round
from webapp.jobs.rounds import LABEL_SHORTAGE, hold_open, send_work
from webapp.jobs.waiting import Waiting, waiting

ASK_AGAIN_AFTER = timedelta(seconds=10)
"""When a node that does not say that it works on the attempt is asked again."""
ASK_AGAIN_ANYWAY_AFTER = timedelta(seconds=30)
"""When any node is asked again: its runner stays from round to round, so that its heartbeat does not tell whether this
round's message was lost. A node that is at it ignores the repeat."""
GIVE_UP_AFTER = timedelta(seconds=30)
"""How long a round waits for nodes that are gone, when nobody else is out."""
PROGRESS_IS_FRESH_FOR = timedelta(seconds=15)
"""How long after it said that it came further a client counts as at work: three of its reports, 5 s apart."""
WORTH_SAYING_AFTER = timedelta(seconds=5)
"""How long a round is out before the job says whom it waits for. Quick rounds are not worth a write each."""

_State = Participation.State


@dataclass(frozen=True)
class Verdict:
    """What is to be done with an open round."""

    act: Literal["wait", "close", "fail", "lose"]
    """fail: the quorum cannot be reached. lose: it could, if nodes that are gone came back; the job tries again."""
    reason: str = ""


def chase(participations: list[Participation], spec: JobSpec, now: datetime) -> None:
    """Note who is lost, and ask again who is back or whose message may have been lost.

    All are of one round, each with `round.attempt` and `assignment.node` loaded. Every step is compare-and-swap.
    """
    back: list[Participation] = []
    unheard: list[Participation] = []
    for participation in participations:
        node = participation.assignment.node
        if participation.state == _State.ASKED and (reason := why_gone(node, participation.boot_id)):
            participation.move_to(_State.LOST, reason + secure.what_follows(participation))
        if (
            participation.state == _State.LOST
            and node.state == Node.State.ONLINE
            and not secure.is_out_for_good(participation)
        ):
            back.append(participation)
        elif participation.state == _State.ASKED and _repeat_is_due(participation, now):
            unheard.append(participation)
    # Mostly nobody, which costs no query; and else together, as each message of a masked round is made of all clients' posts.
    asked = [p for p in back if _ask_anew(p, now)]
    send_work([*asked, *(p for p in unheard if _repeat(p, now))], spec)


def judge(round_: Round, participations: list[Participation], now: datetime) -> Verdict:
    """Decide what to do with the round, from what its participations are now. Pure."""
    num_returned = sum(p.state == _State.RETURNED for p in participations)
    out = [p for p in participations if p.state in Participation.OUT]
    num_lost = sum(p.state == _State.LOST for p in out)
    enough = num_returned >= round_.num_quorum
    possible = num_returned + len(out) >= round_.num_quorum
    over = now >= hard_limit(round_) or (now >= round_.deadline_at and not any(shows_progress(p, now) for p in out))
    gone = num_lost == len(out) and all(is_given_up(p, now) for p in out)
    if out and possible and not over and not gone:
        return Verdict("wait")
    if enough:
        return Verdict("close")
    would_do = num_returned + num_lost >= round_.num_quorum
    return Verdict("lose" if would_do else "fail", shortfall(round_, participations, num_returned, now))


def hard_limit(round_: Round) -> datetime:
    """When the round closes although clients still show progress: at twice its time."""
    return round_.deadline_at + (round_.deadline_at - round_.opened_at)


def shows_progress(participation: Participation, now: datetime) -> bool:
    """Whether the client has said lately that it came further."""
    at = participation.progress_at
    return at is not None and now - at <= PROGRESS_IS_FRESH_FOR


def why_late(participation: Participation, now: datetime) -> str:
    """Why the update of one that was asked is not in a round that closes now. Needs `round` loaded."""
    round_, at = participation.round, participation.progress_at
    missed = f"It was not in when round {round_.number} closed"
    if at is None:
        return f"{missed}, and had shown no progress."
    if shows_progress(participation, now):
        limit = (hard_limit(round_) - round_.opened_at).total_seconds()
        return f"{missed}: it still made progress, and {limit:,.0f} s are twice the round's deadline."
    return f"{missed}: it had shown no progress for {(now - at).total_seconds():,.0f} s."


def describe_wait(round_: Round, participations: list[Participation], now: datetime) -> Waiting | None:
    """Whom the round waits for, once it is worth saying."""
    out = [p for p in participations if p.state in Participation.OUT]
    lost = [p for p in out if p.state == _State.LOST]
    if not out or (not lost and now - round_.opened_at < WORTH_SAYING_AFTER):
        return None
    names = ", ".join(p.assignment.node.name for p in out)
    what = f"Round {round_.number} waits for {names}."
    if lost:
        what += " " + " ".join(sorted({p.state_reason for p in lost}))
    num_returned = sum(p.state == _State.RETURNED for p in participations)
    enough = num_returned >= round_.num_quorum
    only_lost = len(lost) == len(out)
    deadline = round_.deadline_at
    if now >= deadline:
        deadline = hard_limit(round_)
        at_work = [p.assignment.node.name for p in out if shows_progress(p, now)]
        verb = pluralize(at_work, "makes,make")
        what += f" Its deadline has passed; {', '.join(at_work)} still {verb} progress." if at_work else ""
    until = max(p.state_changed_at for p in lost) + GIVE_UP_AFTER if only_lost else deadline
    if enough:
        updates = f"{num_returned:,} update{pluralize(num_returned)} that {pluralize(num_returned, 'is,are')} in"
        then = f"The round closes with the {updates}."
    elif only_lost:
        then = "The job queues again, and goes on from the last closed round."
    else:
        quorum = round_.num_quorum
        then = f"The job fails, unless {quorum:,} update{pluralize(quorum)} {pluralize(quorum, 'is,are')} in by then."
    return waiting(what=what, since=round_.opened_at, until=min(until, deadline), then=then)


def is_given_up(participation: Participation, now: datetime) -> bool:
    """Whether nobody waits for a lost one any more: it has been gone for long, or was revoked and never comes back, or forgot
    the masks that it agreed on."""
    revoked = participation.assignment.node.state == Node.State.REVOKED
    return revoked or secure.is_out_for_good(participation) or now - participation.state_changed_at > GIVE_UP_AFTER


def _ask_anew(participation: Participation, now: datetime) -> bool:
    """Count on a lost one again, whose node is back. Whether its message is to be sent; of two callers, one does."""
    node = participation.assignment.node
    with transaction.atomic():
        back = f"{node.name} is back."
        if hold_open(participation.round) and participation.move_to(
            _State.ASKED, back, asked_at=now, boot_id=node.boot_id
        ):
            # The slots go with the work: a stop must reach the boot that has it.
            Assignment.objects.filter(pk=participation.assignment_id).update(boot_id=node.boot_id)
            return True
    return False


def _repeat_is_due(participation: Participation, now: datetime) -> bool:
    working = participation.round.attempt_id in participation.assignment.node.running_attempts
    return now - participation.asked_at >= (ASK_AGAIN_ANYWAY_AFTER if working else ASK_AGAIN_AFTER)


def _repeat(participation: Participation, now: datetime) -> bool:
    """Note that the message is sent again. Whether it is to be sent; of two callers, one does."""
    same = Participation.objects.filter(pk=participation.pk, state=_State.ASKED, asked_at=participation.asked_at)
    if same.update(asked_at=now) != 1:
        return False
    participation.asked_at = now
    return True


def shortfall(round_: Round, participations: Sequence[Participation], num_returned: int, now: datetime) -> str:
    """Such as: Round 3 needed 2 updates of 2 and got 1. Missing: node-2 (its last sign came 20 s ago)."""
    missing = [
        f"{p.assignment.node.name} ({(p.state_reason or _silence(p, now)).rstrip('.')})"
        for p in participations
        if p.state != _State.RETURNED
    ]
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    wanted = f"{round_.num_quorum:,} update{pluralize(round_.num_quorum)} of {len(participations):,}"
    sentences = [f"Round {round_.number} needed {wanted} and got {num_returned:,}."]
    if missing:
        sentences.append(f"Missing: {shown}.")
    if shortage := round_.facts.get(LABEL_SHORTAGE):
        sentences.append(f"{shortage} Give the label to more of the job's nodes, and resume it.")
    return " ".join(sentences)


def _silence(participation: Participation, now: datetime) -> str:
    return "it was still making progress" if shows_progress(participation, now) else "no update came"

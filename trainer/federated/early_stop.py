"""When a federated job ends before its last round: the goal is reached, nothing gets better, or the privacy is spent. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trainer.federated.privacy import epsilon_after, rounds_within
from trainer.sections.federated import EarlyStop, Federated

_RISING = ("test/accuracy", "test/r2", "server/accuracy", "server/r2")
"""Metrics that should rise; all others are losses."""


@dataclass(frozen=True)
class Measured:
    """The watched metric of a round whose clients measured it."""

    number: int
    """Of the round."""
    value: float


def why_stop(stop: EarlyStop, history: Sequence[Measured], *, resumed_at: int = 0) -> str:
    """Return why the job ends with the last round of `history`, such as `test/loss has not improved for 3 rounds.`; else nothing.

    `history` ascends, or begins with what `worth_keeping` left of it; its last entry is the round that is closing. After a job that ended with round `resumed_at` was
    resumed by hand, patience counts from there, and a target that had been reached by then is reached no more: who asks for
    more rounds gets them.
    """
    if not history:
        return ""
    latest = history[-1]
    if stop.target is not None and _reaches(latest.value, stop.target, stop):
        before = (m.value for m in history if m.number <= resumed_at)
        if not any(_reaches(value, stop.target, stop) for value in before):
            return f"{stop.metric} is {latest.value:.6g}, and the target was {stop.target:g}."
    if stop.patience is not None:
        num_rounds = latest.number - max(_best(stop, history).number, resumed_at)
        if num_rounds >= stop.patience:
            by = f" by {stop.min_delta:g}" if stop.min_delta else ""
            return f"{stop.metric} has not improved{by} for {num_rounds} round{'' if num_rounds == 1 else 's'}."
    return ""


def worth_keeping(stop: EarlyStop, history: Sequence[Measured]) -> list[Measured]:
    """Return the two entries of `history` at most that `why_stop` needs of it, whatever is measured later.

    They are the best, and the first that reached the target: whoever carries these pays nothing for many rounds. The best comes
    first, so that it stays the best when `min_delta` is more than what lies between the two.
    """
    if not history:
        return []
    reached = [m for m in history if stop.target is not None and _reaches(m.value, stop.target, stop)]
    return [_best(stop, history), *sorted(reached, key=lambda m: m.number)[:1]]


def why_last(
    federated: Federated, number: int, num_rounds: int, history: Sequence[Measured], *, resumed_at: int = 0
) -> str:
    """Return why round `number` is the last one although `num_rounds` were planned; empty where it is not.

    `history` and `resumed_at` as for `why_stop`; it ends with this round where the round measured the watched metric.
    """
    if number >= num_rounds:
        return ""
    measured = bool(history) and history[-1].number == number
    if federated.stop and measured and (why := why_stop(federated.stop, history, resumed_at=resumed_at)):
        return why
    if federated.privacy is not None and number >= last_round(federated, num_rounds):
        return (
            f"one more round would spend more than the epsilon of {federated.privacy.max_epsilon:g} that "
            "privacy.max_epsilon allows."
        )
    return ""


def last_round(federated: Federated, num_rounds: int) -> int:
    """Return the last of `num_rounds` rounds that stays within `privacy.max_epsilon`; 0 where not even the first does.

    What happens in the rounds does not matter: their epsilon is known before they begin.
    """
    if federated.privacy is None or federated.privacy.max_epsilon is None:
        return num_rounds
    return _rounds_within(federated.privacy, federated.clients, num_rounds)


def why_unaffordable(federated: Federated, number: int) -> str:
    """Return why round `number` of a job that has begun may not begin, for one beyond `last_round`. There is a `max_epsilon`."""
    privacy = federated.privacy
    assert privacy is not None
    spent = epsilon_after(privacy, federated.clients, number)
    return (
        f"Round {number} would bring epsilon to {spent:.3g}, and privacy.max_epsilon is {privacy.max_epsilon:g}: clone the "
        "job with a larger noise_multiplier or max_epsilon."
    )


def is_evaluated(federated: Federated, number: int, num_rounds: int) -> bool:
    """Whether the clients measure their test rows in round `number` of `num_rounds`: every k-th, and the last."""
    return number % federated.evaluate_every == 0 or number >= last_round(federated, num_rounds)


_rounds_within = lru_cache(maxsize=256)(rounds_within)
"""The search takes many accounts, and each message of each round asks."""


def _best(stop: EarlyStop, history: Sequence[Measured]) -> Measured:
    """The last entry that counted as better than all before it. A first value counts, even NaN; NaN never beats anything."""
    best = history[0]
    for measured in history[1:]:
        gain = _gain(stop, measured.value, best.value)
        if (gain > 0 and gain >= stop.min_delta) or (best.value != best.value and measured.value == measured.value):
            best = measured
    return best


def _gain(stop: EarlyStop, value: float, other: float) -> float:
    """By how much `value` is better than `other`."""
    return value - other if stop.metric in _RISING else other - value


def _reaches(value: float, target: float, stop: EarlyStop) -> bool:
    return _gain(stop, value, target) >= 0

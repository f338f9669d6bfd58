"""What a node says of the rounds that it simulated: can it be true? Pure.

Nobody else saw these rounds: what the spec fixes beforehand, such as who is drawn, is checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from trainer.federated.draw import draw_clients
from trainer.federated.early_stop import Measured, last_round, why_last, why_unaffordable
from trainer.federated.facts import RoundFacts
from trainer.federated.privacy import epsilon_after
from trainer.sections.federated import Federated
from trainer.simulation.messages import MOST_CLIENTS_TOLD, SimulatedRound, SimulatedRounds
from trainer.sources import SourceSchema
from trainer.spec import JobSpec
from webapp.jobs.claims import MAX_METRICS

CLOCK_ERROR = timedelta(days=1)
"""By how much a node's clock may be wrong. Far beyond it dates leave the calendar, and its pages."""


def why_gap(offer: SimulatedRounds, *, done: int, planned: int) -> str:
    """Why these rounds cannot follow round `done` of `planned`; empty where the last of them is beyond it, and they may."""
    numbers = [said.round for said in offer.rounds]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return f"The rounds {_listed(numbers)} are not consecutive: send each round once, in order."
    if numbers[0] > done + 1:
        return f"Round {numbers[0]} does not follow round {done}, the last one that is recorded: send round {done + 1} first."
    if numbers[-1] > planned:
        return f"Round {numbers[-1]} is more than the {planned} rounds that the job is to have."
    if any(said.stopped for said in offer.rounds[:-1]):
        return "A round after which the job stops is followed by another one."
    return ""


def why_false(said: SimulatedRound, spec: JobSpec, source: SourceSchema) -> str:
    """Return a sentence on the first thing that cannot be true of a round; empty where there is none."""
    assert spec.federated is not None
    return (
        _why_false_clients(said, spec, spec.federated)
        or _why_false_counts(said, spec.federated, source)
        or _why_false_metrics(said)
        or _why_false_facts(said, spec.federated)
    )


def why_false_times(said: SimulatedRound, *, began: datetime, now: datetime) -> str:
    """Return a sentence on times at which the round cannot have been, by the attempt's begin; empty where it can."""
    try:
        opened, closed = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (said.opened_ms, said.closed_ms))
    except (OverflowError, OSError, ValueError):
        return f"Round {said.round} has times that no calendar has."
    if opened > closed:
        return f"Round {said.round} closed before it opened."
    if opened < began - CLOCK_ERROR or closed > now + CLOCK_ERROR:
        return f"Round {said.round} was on {opened:%Y-%m-%d}, and the attempt began on {began:%Y-%m-%d}: set the node's clock."
    return ""


def why_false_stop(
    new: Sequence[SimulatedRound], federated: Federated, *, planned: int, before: Sequence[Measured], resumed_at: int
) -> str:
    """Return a sentence where a round ends the job that need not, or goes on from one that does; empty where all is well.

    `before` and `resumed_at` are those of the rounds that are recorded, as for `early_stop.why_last`.
    """
    history = list(before)
    for said in new:
        if federated.stop and federated.stop.metric in said.metrics:
            history.append(Measured(said.round, said.metrics[federated.stop.metric]))
        why = why_last(federated, said.round, planned, history, resumed_at=resumed_at)
        if said.stopped != why:
            found = f"it ends: {why}" if why else "it goes on."
            return f"Round {said.round} does not say rightly whether the job ends with it. By what it measured, {found}"
    return ""


def why_false_labels(offer: SimulatedRounds, spec: JobSpec, source: SourceSchema) -> str:
    """Return a sentence on label counts that cannot be true; empty where there are none such."""
    assert spec.federated is not None
    if offer.label_counts is None:
        return ""
    known = set(source.classes or map(str, range(source.num_classes or 0)))
    expected = min(spec.federated.clients.total, MOST_CLIENTS_TOLD)
    if len(offer.label_counts) != expected:
        return f"There are label counts of {len(offer.label_counts)} clients, and there must be those of the first {expected}."
    for client, counts in enumerate(offer.label_counts):
        if unknown := sorted(counts.keys() - known):
            return f"Client {client} counts rows of the label '{unknown[0][:80]}', which '{source.name}' does not have."
        if counts and min(counts.values()) < 0:
            return f"Client {client} counts fewer than 0 rows of a label."
    if (total := sum(sum(counts.values()) for counts in offer.label_counts)) > source.num_rows:
        return f"The label counts come to {total:,} rows, and '{source.name}' has {source.num_rows:,}."
    return ""


def _why_false_clients(said: SimulatedRound, spec: JobSpec, federated: Federated) -> str:
    told = [client.client for client in said.clients]
    if len(told) != min(said.num_clients, MOST_CLIENTS_TOLD) or told != sorted(set(told)):
        return f"Round {said.round} must tell of its first {MOST_CLIENTS_TOLD} clients, each once, by index."
    # Under privacy the operating system's randomness draws, and nobody can know whom.
    may_be = range(federated.clients.total) if federated.privacy else draw_clients(spec, said.round)
    if foreign := sorted(set(told) - set(may_be)):
        return f"Client {foreign[0]} was not drawn for round {said.round}: is the node's version the server's?"
    if said.num_clients > len(may_be):
        return f"Round {said.round} claims {said.num_clients:,} clients, and {len(may_be):,} were drawn."
    return ""


def _why_false_counts(said: SimulatedRound, federated: Federated, source: SourceSchema) -> str:
    if not sum(client.num_examples for client in said.clients) <= said.num_examples <= source.num_rows:
        return f"Round {said.round} claims {said.num_examples:,} examples, and '{source.name}' has {source.num_rows:,} rows."
    if not all(
        math.isfinite(seconds) for seconds in (said.seconds_training, *(c.seconds_training for c in said.clients))
    ):
        return f"The training time of round {said.round} is not a number of seconds."
    most = [federated.local_epochs * client.num_examples for client in said.clients]
    if any(client.num_steps > steps for client, steps in zip(said.clients, most, strict=True)):
        return f"A client of round {said.round} claims more steps than it has examples, over all of its epochs."
    return ""


def _why_false_metrics(said: SimulatedRound) -> str:
    if len(said.metrics) > MAX_METRICS or any(
        not 1 <= len(name) <= 100 or not name.isprintable() for name in said.metrics
    ):
        return f"A round carries at most {MAX_METRICS} metrics, each with a name of 1 to 100 printable characters."
    return ""


def _why_false_facts(said: SimulatedRound, federated: Federated) -> str:
    try:
        facts = RoundFacts.model_validate(said.facts)
    except ValidationError:
        return f"What round {said.round} says of its aggregation is not what this server knows: update the node."
    lists = [facts.weights or [], facts.norms or []]
    numbers = [*lists[0], *lists[1], *(facts.clip_norm or 0.0, facts.noise_std or 0.0, facts.epsilon or 0.0)]
    if any(len(values) > MOST_CLIENTS_TOLD for values in lists) or not all(map(math.isfinite, numbers)):
        return f"What round {said.round} says of its aggregation are not finite numbers of its first {MOST_CLIENTS_TOLD} clients."
    private = (facts.clip_norm, facts.noise_std, facts.epsilon)
    if federated.privacy is None:
        return (
            f"Round {said.round} tells of privacy, and the job has none." if any(f is not None for f in private) else ""
        )
    # A privacy that did not take effect fails the job.
    if facts.epsilon is None or None in private:
        return f"Round {said.round} does not say what its privacy cost, and whether there was noise."
    if last_round(federated, said.round) < said.round:
        return why_unaffordable(federated, said.round)
    spent = epsilon_after(federated.privacy, federated.clients, said.round)
    if not math.isclose(facts.epsilon, spent, rel_tol=1e-6):  # libraries differ in the last digits
        return f"Round {said.round} says that epsilon is {facts.epsilon:.6g}, and it is {spent:.6g}: is the node's version the server's?"
    return ""


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" and so on" if len(numbers) > 5 else "")

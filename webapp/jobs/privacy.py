"""What central differential privacy costs a job: forecast for the form, spent for the job's page.

A page shows as spent what the closed rounds recorded, never what the spec promised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from trainer.federated.facts import RoundFacts
from trainer.federated.privacy import epsilon_after, noise_stds, noise_within, rounds_within
from trainer.sections.clients import Clients
from trainer.sections.privacy import CentralPrivacy
from trainer.sources import SourceSchema, count_parameters
from trainer.spec import JobSpec
from webapp.jobs.models import Job, Round

MILESTONES = 4
"""Rounds whose epsilon is told before the job starts."""
DROWNED = 3.0
"""From which ratio on people are warned: a linear model of digits still learns at 1, and hardly at 3."""


@dataclass(frozen=True)
class Milestone:
    round: int
    epsilon: float


@dataclass(frozen=True)
class Forecast:
    """What a job's privacy will cost, at its delta."""

    delta: float
    epsilon: float
    """After the last round."""
    rounds: int
    """The last round: earlier than planned where `max_epsilon` ends the job."""
    num_planned: int
    max_epsilon: float | None
    noise_for_all: float | None
    """The noise multiplier with which no round would be cut, where some are and there is one."""
    milestones: list[Milestone]
    """Evenly spaced rounds, the last one among them."""
    noise_ratio: float | None = None
    """Length of the noise on the mean update over the longest that this can be: z * sqrt(parameters) / clients of a round.
    None where the model's size is not known."""

    @property
    def drowns(self) -> bool:
        """Whether little can be learned through the noise."""
        return self.noise_ratio is not None and self.noise_ratio > DROWNED

    @property
    def is_cut_short(self) -> bool:
        return self.rounds < self.num_planned


@dataclass(frozen=True)
class Spent:
    """What the closed rounds of a job have cost."""

    round: int
    epsilon: float | None
    """None where the round recorded none: then nobody knows, and the page says so."""
    clip_norm: float | None
    """In the last closed round, as all below."""
    num_clipped: int | None
    noise_std: float | None
    """Of the noise on each weight of the mean update."""


@dataclass(frozen=True)
class Privacy:
    """What a page shows."""

    forecast: Forecast
    phase: Literal["planned", "open", "ended"] = "planned"
    """Of the job: not submitted yet, not ended yet, or ended."""
    spent: Spent | None = None
    """None before the first round has closed."""


def forecast_privacy(spec: JobSpec, source: SourceSchema) -> Privacy | None:
    """Return what the spec's privacy will cost on `source`, which it fits. None without privacy."""
    federated = spec.federated
    if federated is None or federated.privacy is None:
        return None
    forecast = _forecast(federated.privacy, federated.clients, federated.rounds)
    std, _ = noise_stds(federated.privacy, federated.clients, clip_norm=1.0)
    ratio = std * math.sqrt(count_parameters(spec.model, source)) / federated.clients.num_drawn
    return Privacy(replace(forecast, noise_ratio=ratio))


def privacy_of(job: Job) -> Privacy | None:
    """Return what the job's privacy has cost, and what it will. None without privacy. One query."""
    federated = job.spec.federated
    if federated is None or federated.privacy is None:
        return None
    forecast = _forecast(federated.privacy, federated.clients, job.progress_total)
    phase: Literal["open", "ended"] = "ended" if job.is_terminal else "open"
    last = Round.objects.filter(attempt__job=job, state=Round.State.CLOSED).order_by("-number").first()
    if last is None:
        return Privacy(forecast, phase)
    facts = RoundFacts.model_validate(last.facts)
    spent = Spent(last.number, facts.epsilon, facts.clip_norm, facts.num_clipped, facts.noise_std)
    return Privacy(forecast, phase, spent)


_noise_within = lru_cache(maxsize=256)(noise_within)
"""The search takes up to a second, and the form asks again after each change of any field."""


def _forecast(privacy: CentralPrivacy, clients: Clients, num_planned: int) -> Forecast:
    rounds = rounds_within(privacy, clients, num_planned)
    steps = sorted({max(1, round(rounds * part / MILESTONES)) for part in range(1, MILESTONES + 1)}) if rounds else []
    return Forecast(
        delta=privacy.delta,
        epsilon=epsilon_after(privacy, clients, rounds),
        rounds=rounds,
        num_planned=num_planned,
        max_epsilon=privacy.max_epsilon,
        noise_for_all=_noise_within(privacy, clients, num_planned) if rounds < num_planned else None,
        milestones=[Milestone(number, epsilon_after(privacy, clients, number)) for number in steps],
    )

"""What pages say of privacy: the forecast before a job, what its rounds recorded after."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template.loader import render_to_string

from tests.web.pages.conftest import submit
from trainer.federated.facts import RoundFacts
from trainer.federated.privacy import epsilon_after
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from webapp.jobs.models import Attempt, Job, Round
from webapp.jobs.presets import PRESETS
from webapp.jobs.privacy import Milestone, Privacy, Spent, forecast_privacy, privacy_of
from webapp.jobs.templatetags.privacy_ui import epsilon, strength
from webapp.teams.models import Team

DIGITS = BUILTIN_SOURCES["digits"]


def raw(**privacy: Any) -> dict[str, Any]:
    preset = PRESETS["digits-federated"].spec
    return {**preset, "federated": {"rounds": 20, "clients": {"num": 10}, "privacy": privacy}}


def spec_with(**privacy: Any) -> JobSpec:
    return JobSpec.model_validate(raw(**privacy))


@pytest.fixture
def private_job(team: Team, owner: User) -> Job:
    return submit(team, owner, federated=raw(noise_multiplier=4)["federated"])


def close_round(job: Job, number: int, facts: RoundFacts, attempt_number: int = 1) -> None:
    attempt, _ = Attempt.objects.get_or_create(job=job, number=attempt_number, defaults={"state": Attempt.State.FAILED})
    Round.objects.create(
        attempt=attempt,
        number=number,
        state=Round.State.CLOSED,
        weights_digest="a" * 64,
        num_quorum=1,
        deadline_at=attempt.started_at,
        facts=facts.model_dump(mode="json"),
    )


def drawn(privacy: Privacy | None) -> str:
    """The part as a reader sees it: words and numbers."""
    text = re.sub(r"<[^>]+>", " ", render_to_string("jobs/parts/privacy.html", {"privacy": privacy}))
    return re.sub(r"\s+", " ", text).strip()


def test_forecast() -> None:
    spec = spec_with(noise_multiplier=4)
    privacy = forecast_privacy(spec, DIGITS)
    assert privacy is not None
    assert privacy.spent is None
    assert spec.federated is not None
    assert spec.federated.privacy is not None
    costs = {n: epsilon_after(spec.federated.privacy, spec.federated.clients, n) for n in (5, 10, 15, 20)}
    assert privacy.forecast.milestones == [Milestone(number, cost) for number, cost in costs.items()]
    assert privacy.forecast.epsilon == costs[20]
    assert not privacy.forecast.is_cut_short


def test_forecast_ends_at_the_limit() -> None:
    privacy = forecast_privacy(spec_with(noise_multiplier=4, max_epsilon=4), DIGITS)
    assert privacy is not None
    assert privacy.forecast.is_cut_short
    assert privacy.forecast.epsilon <= 4.0
    assert f"The job ends with round {privacy.forecast.rounds} of 20: the next would go beyond ε = 4" in drawn(privacy)


def test_forecast_says_which_noise_would_do() -> None:
    privacy = forecast_privacy(spec_with(noise_multiplier=4, max_epsilon=4), DIGITS)
    assert privacy is not None
    enough = privacy.forecast.noise_for_all
    assert enough is not None
    assert f"A noise multiplier of {epsilon(enough)} would do for all of them" in drawn(privacy)
    whole = forecast_privacy(spec_with(noise_multiplier=float(epsilon(enough)), max_epsilon=4), DIGITS)
    assert whole is not None
    assert not whole.forecast.is_cut_short
    assert whole.forecast.noise_for_all is None


def test_forecast_of_the_noise() -> None:
    """Of d coordinates with the deviation z * C / m each, the length is z * C / m * sqrt(d); no mean update is longer than C."""
    few = JobSpec.model_validate({**raw(noise_multiplier=4), "model": {"name": "linear"}})
    privacy = forecast_privacy(few, DIGITS)
    assert privacy is not None
    assert privacy.forecast.noise_ratio == pytest.approx(4 * math.sqrt(65 * 10) / 10)
    assert "Noise 10.2 times the longest mean update drowns it" in drawn(privacy)
    assert "Little will be learned through so much noise" in drawn(privacy)
    many = JobSpec.model_validate({**few.model_dump(), "federated": {"clients": {"num": 100}, "privacy": {}}})
    text = drawn(forecast_privacy(many, DIGITS))
    assert "Noise 0.255 times the longest mean update" in text
    assert "drowns" not in text
    assert "Little will be learned" not in text


def test_no_privacy_has_no_forecast() -> None:
    assert forecast_privacy(JobSpec.model_validate(PRESETS["digits-federated"].spec), DIGITS) is None
    assert forecast_privacy(JobSpec.model_validate(PRESETS["digits-distributed"].spec), DIGITS) is None
    assert drawn(None) == ""


def test_nothing_is_spent_before_a_round_has_closed(private_job: Job) -> None:
    privacy = privacy_of(private_job)
    assert privacy is not None
    assert (privacy.phase, privacy.spent) == ("open", None)
    assert "Spent nothing yet At the end ε ≤" in drawn(privacy)


def test_more_rounds_cost_more(private_job: Job) -> None:
    """Resumed with more rounds, a job has more of them than its spec."""
    private_job.progress_total = 40
    privacy = privacy_of(private_job)
    planned = forecast_privacy(private_job.spec, DIGITS)
    assert privacy is not None
    assert planned is not None
    assert (privacy.forecast.rounds, planned.forecast.rounds) == (40, 20)
    assert privacy.forecast.epsilon > planned.forecast.epsilon


def test_spent_is_what_the_rounds_recorded(private_job: Job, django_assert_num_queries: Any) -> None:
    """Also over attempts: one that goes on after a crash pays on."""
    close_round(private_job, 1, RoundFacts(epsilon=1.25))
    facts = RoundFacts(epsilon=1.75, clip_norm=0.5, num_clipped=3, noise_std=0.2)
    close_round(private_job, 2, facts, attempt_number=2)
    with django_assert_num_queries(1):
        privacy = privacy_of(private_job)
    assert privacy is not None
    assert privacy.spent == Spent(round=2, epsilon=1.75, clip_norm=0.5, num_clipped=3, noise_std=0.2)
    text = drawn(privacy)
    assert "Spent ε ≤ 1.75 after round 2 usual" in text
    assert "Clip norm 0.5 ; 3 cut in round 2" in text
    assert "At the end ε ≤" in text


def test_no_epsilon_is_shown_that_no_round_recorded(private_job: Job) -> None:
    close_round(private_job, 1, RoundFacts())
    assert "Spent unknown: round 1 recorded none" in drawn(privacy_of(private_job))


def test_an_ended_job_has_no_forecast(private_job: Job) -> None:
    """It may have stopped early: what it would have cost in the end is no matter any more."""
    close_round(private_job, 3, RoundFacts(epsilon=3))
    private_job.state = Job.State.FINISHED
    text = drawn(privacy_of(private_job))
    assert "Spent ε ≤ 3 after round 3" in text
    assert "At the end" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.12345, "0.124"),
        (1.0, "1"),
        (4.931, "4.94"),
        (99.99, "100"),
        (1234.2, "1,240"),
        (float("inf"), "∞"),
    ],
)
def test_epsilon_is_rounded_up(value: float, text: str) -> None:
    assert epsilon(value) == text


def test_strength() -> None:
    assert [strength(value) for value in (0.5, 1, 5, 10, 10.1)] == ["strong", "strong", "usual", "usual", "weak"]

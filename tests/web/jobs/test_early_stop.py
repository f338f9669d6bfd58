"""When a job ends before its last round: exact rounds for exact histories."""

import math
import random

import pytest

from trainer.federated.early_stop import Measured, is_evaluated, last_round, why_stop, worth_keeping
from trainer.sections.federated import EarlyStop, Federated


def history(*values: float, every: int = 1) -> list[Measured]:
    return [Measured(number * every, value) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("metric", "values", "sentence"),
    [
        ("test/loss", [1.0, 0.5], "test/loss is 0.5, and the target was 0.5."),
        ("test/loss", [1.0, 0.625], ""),
        ("train/loss", [0.25], "train/loss is 0.25, and the target was 0.5."),
        ("test/accuracy", [0.25], ""),
        ("test/accuracy", [0.25, 0.75], "test/accuracy is 0.75, and the target was 0.5."),
        ("test/r2", [-3.0, 0.5], "test/r2 is 0.5, and the target was 0.5."),
        ("test/loss", [math.nan], ""),
    ],
)
def test_a_target_is_reached_from_the_right_side(metric, values, sentence):
    assert why_stop(EarlyStop(metric=metric, target=0.5), history(*values)) == sentence


@pytest.mark.parametrize(
    ("metric", "values", "rounds"),
    [
        ("test/loss", [4, 3, 2, 1], 0),
        ("test/loss", [4, 3, 3], 1),
        ("test/loss", [4, 3, 5, 4], 2),
        ("test/loss", [1, 2, 3, 0.5, 1], 1),
        ("test/accuracy", [0.1, 0.2, 0.3], 0),
        ("test/accuracy", [0.9, 0.8, 0.7], 2),
        ("test/loss", [math.nan, math.nan, math.nan], 2),
        ("test/loss", [math.nan, 9], 0),
        ("test/loss", [9, math.nan, math.inf], 2),
    ],
)
def test_patience_counts_the_rounds_since_the_best(metric, values, rounds):
    assert why_stop(EarlyStop(metric=metric, patience=rounds + 1), history(*values)) == ""
    if rounds:
        s = "" if rounds == 1 else "s"
        sentence = f"{metric} has not improved for {rounds} round{s}."
        assert why_stop(EarlyStop(metric=metric, patience=rounds), history(*values)) == sentence


def test_a_small_gain_does_not_count_as_better():
    stop = EarlyStop(patience=2, min_delta=0.25)
    assert why_stop(stop, history(1.0, 0.75, 0.5)) == ""
    assert why_stop(stop, history(1.0, 0.875, 0.8125)) == "test/loss has not improved by 0.25 for 2 rounds."
    # Small gains add up: better is measured from the last value that counted.
    assert why_stop(stop, history(1.0, 0.875, 0.75)) == ""


def test_patience_counts_rounds_and_not_evaluations():
    stop = EarlyStop(patience=6)
    assert why_stop(stop, history(1.0, 2.0, every=5)) == ""
    assert why_stop(stop, history(1.0, 2.0, 2.0, every=5)) == "test/loss has not improved for 10 rounds."


def test_who_asks_for_more_rounds_gets_them():
    flat = [1.0] * 4
    assert why_stop(EarlyStop(patience=3), history(*flat), resumed_at=3) == ""
    assert why_stop(EarlyStop(patience=3), history(*flat, 1.0, 1.0), resumed_at=3) != ""
    assert why_stop(EarlyStop(target=1.0), history(*flat), resumed_at=3) == ""
    assert why_stop(EarlyStop(target=0.5), history(*flat, 0.5), resumed_at=4) != ""


def test_the_last_of_the_rounds_is_evaluated():
    federated = Federated(rounds=7, evaluate_every=3)
    assert [n for n in range(1, 8) if is_evaluated(federated, n, 7)] == [3, 6, 7]
    assert [n for n in range(1, 8) if is_evaluated(Federated(rounds=7), n, 7)] == [1, 2, 3, 4, 5, 6, 7]


def test_the_last_round_within_the_budget_is_the_last():
    from trainer.federated.privacy import epsilon_after

    open_end = Federated.model_validate({"privacy": {"noise_multiplier": 2.0}})
    privacy, clients = open_end.privacy, open_end.clients
    spent = [epsilon_after(privacy, clients, number) for number in (4, 5)]
    limited = Federated(privacy=privacy.model_copy(update={"max_epsilon": sum(spent) / 2}), evaluate_every=3)
    assert last_round(open_end, 20) == 20
    assert last_round(limited, 20) == 4
    assert last_round(limited, 3) == 3
    assert [n for n in range(1, 5) if is_evaluated(limited, n, 20)] == [3, 4]
    none = Federated(privacy=privacy.model_copy(update={"max_epsilon": 1e-3}))
    assert last_round(none, 20) == 0


@pytest.mark.parametrize("min_delta", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("metric", ["test/loss", "test/accuracy"])
def test_what_is_worth_keeping_answers_as_the_whole_history(metric, min_delta):
    stop = EarlyStop(metric=metric, target=0.5, patience=4, min_delta=min_delta)
    rng = random.Random(7)
    for _ in range(200):
        values = [rng.choice([math.nan, math.inf, *(n / 16 for n in range(4, 14))]) for _ in range(12)]
        carried: list[Measured] = []
        for number, latest in enumerate(history(*values), start=1):
            carried = [*worth_keeping(stop, carried), latest]
            assert len(carried) <= 3
            for resumed_at in range(number):
                expected = why_stop(stop, history(*values[:number]), resumed_at=resumed_at)
                assert why_stop(stop, carried, resumed_at=resumed_at) == expected

"""What the spec refuses of privacy, and with which sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.sections.federated import Federated


def federated(clients: dict[str, Any], privacy: dict[str, Any] | None = None, **more: Any) -> Federated:
    return Federated.model_validate({"clients": clients, "privacy": privacy or {}, **more})


@pytest.mark.parametrize(
    ("clients", "privacy"),
    [
        ({"num": 2}, {}),
        ({"num": 1}, {}),
        ({"num": 100, "fraction": 0.3}, {}),
        ({"num": 11}, {"clip": {"name": "adaptive"}}),
        ({"num": 2}, {"clip": {"name": "adaptive"}, "noise_multiplier": 0.1}),
    ],
)
def test_taken(clients: dict[str, Any], privacy: dict[str, Any]) -> None:
    assert federated(clients, privacy).privacy is not None


@pytest.mark.parametrize(
    ("clients", "privacy", "words"),
    [
        ({"num": 10, "per_round": 5}, {}, "raise clients.per_round .* or raise clients.num"),
        ({"num": 10, "fraction": 0.5}, {}, "raise clients.fraction .* or raise clients.num"),
        ({"num": 10}, {"clip": {"name": "adaptive"}}, "draw more than 10 clients"),
        ({"num": 20}, {"clip": {"name": "adaptive"}, "noise_multiplier": 2}, "draw more than 20 clients"),
        ({"num": 200}, {"delta": 0.01}, "must be below 0.005"),
    ],
)
def test_refused(clients: dict[str, Any], privacy: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        federated(clients, privacy)


def test_more_rounds_make_a_lone_client_likelier() -> None:
    clients = {"num": 60, "per_round": 12}
    federated(clients, rounds=10)
    with pytest.raises(ValidationError, match="alone in one of 100 rounds"):
        federated(clients, rounds=100)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"strategy": {"name": "scaffold"}}, "set strategy to fedavg, fedprox or fedbn"),
        ({"strategy": {"name": "qfedavg"}}, "set strategy to fedavg, fedprox or fedbn"),
        ({"aggregator": {"name": "median"}}, "set aggregator to mean"),
        ({"aggregator": {"name": "norm_bound"}}, "set aggregator to mean"),
    ],
)
def test_only_a_plain_sum(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        federated({"num": 4}, **more)

"""What secure aggregation goes with, and what the spec refuses beside it, with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.sections.federated import Federated


def section(**changes: Any) -> Federated:
    return Federated.model_validate({"clients": {"num": 4}, "secure_aggregation": {}, **changes})


GOES = {
    "fedavg": {},
    "fedprox": {"strategy": {"name": "fedprox"}},
    "fedbn": {"strategy": {"name": "fedbn"}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "fednova": {"strategy": {"name": "fednova"}},
    "fusion": {"strategy": {"name": "fusion", "weights": [1, 2, 3, 4]}},
    "adam": {"server_optimizer": {"name": "adam"}},
    "privacy over all": {"privacy": {}},
    "privacy over many": {"clients": {"num": 400, "per_round": 40}, "privacy": {}},
    "local privacy": {"local_privacy": {}},
    "drawn": {"clients": {"num": 10, "per_round": 3}},
}
REFUSED = {
    "q-FedAvg": ({"strategy": {"name": "qfedavg"}}, "weighs by the length of each single update"),
    "FedBuff": ({"strategy": {"name": "fedbuff", "buffer": 2}}, "agreed on them beforehand"),
    "median": ({"aggregator": {"name": "median"}}, "compares them one by one"),
    "labels": ({"clients": {"num": 6, "draw_labels": ["north"]}}, "gain and lose labels"),
    "int8": ({"encoding": {"name": "int8"}}, "whole numbers of 4 bytes"),
    "adaptive clip": (
        {"clients": {"num": 400}, "privacy": {"clip": {"name": "adaptive"}}},
        "counts short updates, which secure aggregation hides",
    ),
    "two": ({"clients": {"num": 2}}, "each could take its own update from the sum"),
    "two drawn": ({"clients": {"num": 10, "per_round": 2}}, "draw at least 3"),
    # 1,000 clients with 12 a round: P(fewer than 3) = 5e-4 a round.
    "a draw that may be too small": (
        {"clients": {"num": 1000, "per_round": 12}, "privacy": {"delta": 1e-4}},
        "would have fewer than the 3 that masks need: raise",
    ),
}


@pytest.mark.parametrize("changes", GOES.values(), ids=GOES)
def test_it_goes_with(changes):
    assert section(**changes).secure_aggregation is not None


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        section(**changes)


@pytest.mark.parametrize(("threshold", "ok"), [(0.5, False), (0.51, True), (1.0, True), (1.01, False)])
def test_the_threshold_is_more_than_half(threshold, ok):
    if ok:
        section(secure_aggregation={"threshold": threshold})
    else:
        with pytest.raises(ValidationError):
            section(secure_aggregation={"threshold": threshold})

"""What a client says of its own training: each claim that cannot be true, with its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.data.source import Source
from trainer.federated.client import FederatedClient
from trainer.federated.initial import initial_weights
from trainer.federated.kept import ClientFiles
from trainer.protocol import UpdateOffer
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from webapp.jobs.claims import why_false

FEDNOVA = spec_with(FEDERATED, federated={"strategy": {"name": "fednova"}})
QFEDAVG = spec_with(FEDERATED, federated={"strategy": {"name": "qfedavg"}})
TWICE = spec_with(FEDERATED, federated={"local_epochs": 2}, training={"batch_size": 32})


def why(spec: JobSpec = FEDERATED, source: str = "digits", **claims: Any) -> str:
    offer = UpdateOffer.model_validate({"digest": "0" * 64, "num_examples": 100, **claims})
    return why_false(offer, spec, BUILTIN_SOURCES[source], node_name="node-1", weights_bytes=1000)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"num_steps": 8, "seconds_training": 1.5, "loss_before": 0.0, "bytes_down": 100_000},
        {"metrics": {f"m{i}": float("nan") for i in range(64)}},
        {"label_counts": {"0": 40, "9": 60, "3": 0}},
        {"label_counts": {}},
    ],
)
def test_what_may_be_true(claims: dict[str, Any]) -> None:
    assert why(TWICE, **claims) == ""


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ({"num_examples": 0}, "The update claims 0 examples, and 'digits' on node-1 has 1,797."),
        ({"num_examples": 1798}, "The update claims 1,798 examples, and 'digits' on node-1 has 1,797."),
        ({"num_steps": 9}, "The update claims 9 steps: 2 x 100 examples in batches of 32 are 8."),
        (
            {"num_steps": 2**63},
            "The update claims 9,223,372,036,854,775,808 steps: 2 x 100 examples in batches of 32 are 8.",
        ),
        (
            {"loss_before": float("nan")},
            "The update's loss before training is nan, and must be finite and at least 0: lower the learning rate.",
        ),
        (
            {"loss_before": float("inf")},
            "The update's loss before training is inf, and must be finite and at least 0: lower the learning rate.",
        ),
        (
            {"loss_before": -0.1},
            "The update's loss before training is -0.1, and must be finite and at least 0: lower the learning rate.",
        ),
        ({"bytes_down": 100_001}, "The update claims 100,001 fetched bytes, and the round's weights have 1,000."),
        ({"label_counts": {"0": 40, "1": 50}}, "The update's label counts come to 90, and it claims 100 examples."),
        ({"label_counts": {"0": 101, "1": -1}}, "The update's label counts come to 100, and it claims 100 examples."),
        ({"label_counts": {"10": 100}}, "The update counts rows of the label '10', which 'digits' does not have."),
        (
            {"label_counts": {"x" * 9999: 100}},
            f"The update counts rows of the label '{'x' * 80}', which 'digits' does not have.",
        ),
    ],
)
def test_what_cannot_be(claims: dict[str, Any], sentence: str) -> None:
    assert why(TWICE, **claims) == sentence


def test_a_regression_has_no_labels() -> None:
    assert "label '1', which 'diabetes' does not have" in why(source="diabetes", label_counts={"1": 100})
    assert why(source="diabetes", label_counts={}) == ""


def test_labels_go_by_their_names() -> None:
    named = BUILTIN_SOURCES["breast_cancer"].model_copy(update={"classes": ("benign", "malignant")})

    def why_named(**counts: int) -> str:
        offer = UpdateOffer(digest="0" * 64, num_examples=100, label_counts=counts)
        return why_false(offer, FEDERATED, named, node_name="node-1", weights_bytes=1000)

    assert why_named(benign=60, malignant=40) == ""
    assert "label '0', which 'breast_cancer' does not have" in why_named(**{"0": 100})


def test_a_strategy_gets_what_it_weighs_by() -> None:
    assert "the update does not say how many it took" in why(FEDNOVA)
    assert why(FEDNOVA, num_steps=1) == ""
    assert "the update does not say it" in why(QFEDAVG)
    assert why(QFEDAVG, loss_before=0.0) == ""


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "fednova", "fedbn", "qfedavg"])
def test_what_the_real_client_says_is_believed(tmp_path: Path, strategy: str) -> None:
    """The bounds are exact, so the last batch of each kind counts: here one row is left over."""
    spec = spec_with(
        FEDERATED,
        model={"name": "mlp", "options": {"norm": "batch" if strategy == "fedbn" else "layer"}},
        training={"batch_size": 359},
        federated={"strategy": {"name": strategy}, "local_epochs": 2, "clients": {"num": 2}},
    )
    source = Source(description=BUILTIN_SOURCES["digits"])
    weights = tmp_path / "weights"
    weights.write_bytes(initial_weights(spec, source.description))
    files = ClientFiles(tmp_path / "kept", 0)
    with MetricLog(1, "node-1", lambda *_: None) as log:
        client = FederatedClient(spec, source, 0, 2, log, files=files, share_label_counts=True)
        result = client.train_round(1, weights, tmp_path / "update", memory_path=None)
    assert result.label_counts
    assert result.num_steps > 0
    assert why(spec, **result.model_dump(exclude_none=True)) == ""

"""What a spec refuses because two of its sections do not go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.spec import JobSpec


def spec_with(*, model: dict[str, Any] | None = None, mode: str = "federated", **sections: Any) -> JobSpec:
    raw = {"name": "t", "mode": mode, "data": {"source": "digits"}, "model": model or {"name": "mlp"}, **sections}
    return JobSpec.model_validate(raw)


def federated(strategy: str, **options: Any) -> dict[str, Any]:
    return {"strategy": {"name": strategy}, **options}


BATCH = {"name": "mlp", "options": {"norm": "batch"}}
MOMENTUM = {"optimizer": {"name": "sgd", "momentum": 0.9}}
NESTEROV = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"federated": federated("scaffold"), "training": {"optimizer": {"name": "adam"}}},
            "set training.optimizer to sgd",
        ),
        (
            {"federated": federated("fednova"), "training": {"optimizer": {"name": "adam"}}},
            "strategy fednova is defined",
        ),
        (
            {"federated": federated("qfedavg"), "training": {"optimizer": {"name": "adamw"}}},
            "strategy qfedavg is defined",
        ),
        ({"federated": federated("scaffold"), "training": MOMENTUM}, "set training.optimizer.momentum to 0"),
        ({"federated": federated("fednova"), "training": NESTEROV}, "switch training.optimizer.nesterov off"),
        ({"federated": federated("fedbn")}, "set federated.strategy to fedavg, or give an MLP or a CNN a norm"),
        ({"federated": federated("fedbn"), "model": {"name": "linear"}}, "this model has none"),
        ({"model": BATCH, "training": {"batch_size": 1}}, "set training.batch_size to 2 or more"),
        ({"model": BATCH, "mode": "distributed"}, "would depend on how rows fall to the ranks"),
        ({"model": BATCH, "federated": federated("fednova")}, "and the strategy fednova may take them there"),
        ({"model": BATCH, "federated": {"encoding": {"name": "int8"}}}, "and the encoding int8 may take them there"),
        ({"model": BATCH, "federated": {"server_optimizer": {"name": "adam"}}}, "and the server's optimizer may take"),
        (
            {"model": BATCH, "federated": {"server_optimizer": {"name": "sgd", "lr": 1.1}}},
            "and the server's optimizer may",
        ),
        (
            {"model": BATCH, "federated": {"server_optimizer": {"name": "sgd", "momentum": 0.1}}},
            "and the server's optimizer",
        ),
    ],
)
def test_refused_with_a_sentence(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec_with(**sections)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"federated": federated("fednova"), "training": MOMENTUM},
        {"federated": federated("qfedavg"), "training": MOMENTUM},
        {"federated": federated("scaffold")},
        {"federated": federated("fedprox"), "training": {"optimizer": {"name": "adam"}}},
        {"federated": federated("fedbn", encoding={"name": "int8"}, server_optimizer={"name": "adam"}), "model": BATCH},
        {"federated": federated("scaffold"), "model": BATCH},
        {"federated": federated("fedavg", server_optimizer={"name": "sgd", "lr": 0.5}), "model": BATCH},
    ],
)
def test_what_the_papers_allow_is_allowed(sections: dict[str, Any]) -> None:
    assert spec_with(**sections)


def test_the_noise_of_privacy_and_running_variances() -> None:
    private = {"clients": {"num": 4}, "privacy": {"delta": 1e-5}}
    assert spec_with(federated=private)
    with pytest.raises(ValidationError, match="and the noise of privacy may take them there"):
        spec_with(model=BATCH, federated=private)

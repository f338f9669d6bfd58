"""Small jobs, and their initial weights."""

from __future__ import annotations

from typing import Any

from trainer.federated.initial import initial_weights
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec


def federated_spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "Digits",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "data": {"source": "digits"},
            "federated": {"rounds": 3, "clients": {"num": 2}},
            **changes,
        }
    )


def distributed_spec(*, epochs: int = 1, nodes: int = 2, **changes: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "Digits",
            "mode": "distributed",
            "model": {"name": "linear"},
            "data": {"source": "digits"},
            "training": {"batch_size": 64},
            "distributed": {"nodes": nodes, "epochs": epochs},
            **changes,
        }
    )


def weights_for(spec: JobSpec) -> bytes:
    return initial_weights(spec, BUILTIN_SOURCES[spec.data.source])

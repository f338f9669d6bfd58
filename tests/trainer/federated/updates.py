"""Small sections and headers that the tests of updates share."""

from __future__ import annotations

from pydantic import TypeAdapter

from trainer.sections.federated import Encoding, Federated
from trainer.weights import Header, Weights

_RAW: list[dict[str, object]] = [
    {"name": "float32"},
    {"name": "bfloat16"},
    {"name": "int8"},
    {"name": "top_k", "fraction": 0.5},
]
ENCODINGS: dict[str, Encoding] = {str(raw["name"]): TypeAdapter(Encoding).validate_python(raw) for raw in _RAW}
"""One of each kind, by name."""


def federated(**options: object) -> Federated:
    return Federated.model_validate(options)


def header_of(weights: Weights) -> Header:
    return {name: ("F32", array.shape) for name, array in weights.items()}

"""Metric values as JSON columns keep them: NaN and infinities as strings, which no database takes as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def to_json(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Return `metrics` for a JSON column: NaN, Infinity and -Infinity become strings."""
    return {name: value if math.isfinite(value) else _WORDS[str(value)] for name, value in metrics.items()}


def from_json(metrics: Mapping[str, float | str]) -> dict[str, float]:
    """Undo `to_json`."""
    return {name: float(value) for name, value in metrics.items()}


def weighted_means(parts: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return sum(n_i * m_i) / sum(n_i) of each metric, over the clients that report it; `parts` are (n_i, metrics)."""
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for num_examples, metrics in parts:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + num_examples * value
            weights[name] = weights.get(name, 0) + num_examples
    return {name: total / weights[name] for name, total in sums.items()}


_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

"""One line of results: its median, its spread, and what it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """A measured quantity. `goal` is the largest value that is good; `reference` is what it is compared with."""

    name: str
    samples: Sequence[float]
    unit: str
    goal: float
    quantile: float = 0.5
    """Which one counts: 0.5 for the median."""
    reference: str = ""

    @property
    def value(self) -> float:
        return quantile(self.samples, self.quantile)


def quantile(samples: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the samples lie, interpolated."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=1000, method="inclusive")[min(998, max(0, round(share * 1000) - 1))]


def print_figures(figures: Sequence[Figure]) -> None:
    table = Table(title="Trainmaster: the figures")
    for column in ("figure", "value", "10 % to 90 %", "samples", "goal", "value / goal", "beside it"):
        table.add_column(column, justify="left" if column in ("figure", "beside it") else "right")
    for f in figures:
        label = "median" if f.quantile == 0.5 else f"p{f.quantile * 100:.0f}"
        table.add_row(
            f"{f.name}, {label}",
            f"{f.value:.3g} {f.unit}",
            f"{quantile(f.samples, 0.1):.3g} to {quantile(f.samples, 0.9):.3g}",
            str(len(f.samples)),
            f"{f.goal:g} {f.unit}",
            f"{f.value / f.goal:.2f}",
            f.reference,
        )
    Console(width=150).print(table)

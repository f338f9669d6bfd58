"""One torch thread, as runners have it, and a real metric log whose packs land in a list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch

from trainer.protocol import Points
from trainer.telemetry import MetricLog, unpack_points

# Threads of several test processes on few cores wait for one another: fifty times slower.
torch.set_num_threads(1)


class Heard:
    """What a sink heard."""

    def __init__(self) -> None:
        self.packs: list[tuple[Points, bytes]] = []

    def __call__(self, head: Points, data: bytes) -> None:
        self.packs.append((head, data))

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Metric name -> (step, value) in order of arrival."""
        curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for head, data in self.packs:
            for series in unpack_points(head, data):
                curves[series.name] += zip(series.steps.tolist(), series.values.tolist(), strict=True)
        return dict(curves)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def log(heard: Heard) -> Iterator[MetricLog]:
    with MetricLog(7, "node-1", heard) as log:
        yield log

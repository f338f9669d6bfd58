"""The new weights on the test rows, measured by all ranks together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from trainer.federated.local_round import LocalTrainer
from trainer.models import load_weights
from trainer.simulation.rows import VirtualRows
from trainer.simulation.world import World
from trainer.training import EVALUATION_ROWS, Precision, evaluate_totals, prefixed
from trainer.weights import Weights

MOST_PARTS = 32
"""Parts that the test rows are cut into, whatever the number of ranks: so the sums are the same bits for any."""


def measure(
    trainer: LocalTrainer, rows: VirtualRows, weights: Weights, precision: Precision, world: World
) -> dict[str, float]:
    """Return server/loss and its like of the weights, alike on all ranks. Collective."""
    load_weights(trainer.model, weights)
    device = rows.test_y.device
    parts = list(_parts(len(rows.test_y)))
    table = np.zeros((len(parts), len(trainer.objective.no_totals(device))))
    for number in range(world.rank, len(parts), world.size):
        part = parts[number]
        totals = evaluate_totals(
            trainer.model, trainer.objective, rows.test_x[part], rows.test_y[part], precision=precision
        )
        table[number] = totals.cpu().numpy()
    world.total(table)
    return prefixed("server", trainer.objective.metrics(torch.from_numpy(table.sum(axis=0))))


def _parts(num_rows: int) -> Iterator[slice]:
    size = max(256, min(EVALUATION_ROWS, -(-num_rows // MOST_PARTS)))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)

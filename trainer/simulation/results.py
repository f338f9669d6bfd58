"""What the ranks tell each other of a round's clients: one row of numbers a client, in which only its own rank writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.federated.aggregate import ClientUpdate
from trainer.federated.result import ClientResult
from trainer.simulation.messages import SimulatedClient
from trainer.simulation.world import World

COUNTED, EXAMPLES, STEPS, LOSS_BEFORE, SECONDS = range(5)
"""Columns; those of the training metrics follow."""


class RoundResults:
    """The numbers of all of a round's clients. Ranks fill in their own; `gather` gives each rank all of them."""

    def __init__(self, drawn: Sequence[int], metrics: Sequence[str]) -> None:
        """`metrics` are the names of the training metrics, alike on all ranks."""
        self.drawn = list(drawn)
        self._metrics = list(metrics)
        self._rows = {client: row for row, client in enumerate(self.drawn)}
        self._table = np.zeros((len(self.drawn), SECONDS + 1 + len(self._metrics)))

    def put(self, client: int, result: ClientResult, *, counts: bool) -> None:
        """Note what a client of this rank says. `counts`: its update may be summed."""
        loss_before = np.nan if result.loss_before is None else result.loss_before
        said = [float(counts), result.num_examples, result.num_steps, loss_before, result.seconds_training]
        self._table[self._rows[client]] = said + [result.metrics[name] for name in self._metrics]

    def gather(self, world: World) -> None:
        """Exchange the rows. Collective."""
        world.total(self._table)

    def counted(self) -> list[int]:
        """Return the clients whose updates may be summed, ascending."""
        return [client for client in self.drawn if self._table[self._rows[client], COUNTED]]

    def updates(self, paths: Mapping[int, Path]) -> list[ClientUpdate]:
        """Return the updates that may be summed; `paths` by client."""
        return [
            ClientUpdate(
                path=paths[client],
                client=client,
                num_examples=int(row[EXAMPLES]),
                num_steps=int(row[STEPS]),
                loss_before=None if np.isnan(row[LOSS_BEFORE]) else float(row[LOSS_BEFORE]),
            )
            for client, row in self._counted_rows()
        ]

    def means(self) -> dict[str, float]:
        """Return the training metrics' means over the counted clients, by their examples."""
        rows = self._table[[self._rows[client] for client in self.counted()]]
        values = rows[:, EXAMPLES] @ rows[:, SECONDS + 1 :] / rows[:, EXAMPLES].sum()
        return dict(zip(self._metrics, values.tolist(), strict=True))

    def described(self, norms: Sequence[float] | None) -> list[SimulatedClient]:
        """Return what the server is told of the counted clients. `norms` are their updates', where they are known."""
        loss = SECONDS + 1 + self._metrics.index("train/loss")
        known: Sequence[float | None] = norms or [None] * len(self.counted())
        return [
            SimulatedClient(
                client=client,
                num_examples=int(row[EXAMPLES]),
                num_steps=int(row[STEPS]),
                seconds_training=float(row[SECONDS]),
                loss=float(row[loss]),
                norm=norm,
            )
            for (client, row), norm in zip(self._counted_rows(), known, strict=True)
        ]

    def metrics(self, client: int) -> dict[str, float]:
        """Return the client's training metrics."""
        return dict(zip(self._metrics, self._table[self._rows[client], SECONDS + 1 :].tolist(), strict=True))

    def _counted_rows(self) -> list[tuple[int, np.ndarray]]:
        return [(client, self._table[self._rows[client]]) for client in self.counted()]

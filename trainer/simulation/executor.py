"""How one rank trains its clients of a round: one after the other, as real nodes do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.federated.kept import ClientFiles
from trainer.federated.local_round import LocalTrainer
from trainer.federated.result import ClientResult
from trainer.simulation.rows import VirtualRows
from trainer.weights import Weights

Trained = Callable[[int, ClientResult], None]
"""Called with each client whose update lies in its file."""


class OneByOne:
    """Trains each client as a node of its own would: the same bits."""

    def __init__(self, trainer: LocalTrainer, rows: VirtualRows) -> None:
        self._trainer = trainer
        self._rows = rows

    def train(
        self,
        round_number: int,
        weights: Weights,
        memory: Weights,
        updates: Mapping[int, Path],
        kept: Mapping[int, tuple[ClientFiles, int]],
        on_trained: Trained,
    ) -> None:
        """Train one round of the clients in `updates`, each from `weights`, and write their updates there.

        `memory` is what the strategy remembers for clients. `kept`: each client's files and its last counted round, where
        clients keep something.
        """
        for client, path in updates.items():
            files, counted_round = kept.get(client, (None, 0))
            result = self._trainer.train(
                client,
                self._rows.of(client),
                round_number,
                weights,
                path,
                memory=memory,
                files=files,
                counted_round=counted_round,
                evaluate=False,
                log_epoch=lambda _step, _values: None,
            )
            on_trained(client, result)

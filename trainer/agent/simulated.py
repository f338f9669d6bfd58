"""A node's part of a simulation beside its ranks: what they start from, and rank 0's rounds on their way to the server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from trainer.agent.node import Node
from trainer.agent.round_poster import RoundPoster
from trainer.data.source import Source
from trainer.protocol import RunRanks
from trainer.simulation.plan import RoundPack, SimulationPlan


class Simulation:
    """Use it as a context manager around the ranks: on its way out all rounds that were closed are posted."""

    def __init__(self, node: Node, message: RunRanks, source: Source, folder: Path, stopped: threading.Event) -> None:
        assert message.start is not None
        self._node = node
        self._message = message
        self._start = message.start
        self._source = source
        self._folder = folder
        self._stopped = stopped
        self._borrowed = contextlib.ExitStack()
        self._poster: RoundPoster | None = None

    def __enter__(self) -> Self:
        """Fetch what rank 0 starts from, on its node. Raises what `BlobStore.borrow` raises."""
        weights = memory = None
        with contextlib.ExitStack() as borrowed:
            if self._message.group_rank == 0:
                weights = borrowed.enter_context(self._node.blobs.borrow(self._start.weights, self._stopped))
                if self._start.memory:
                    memory = borrowed.enter_context(self._node.blobs.borrow(self._start.memory, self._stopped))
            self._borrowed = borrowed.pop_all()
        self.plan = SimulationPlan(
            start=self._start,
            weights=weights,
            memory=memory,
            folder=self._folder,
            kept=self._node.home.job_state(self._message.job_id),
            share_label_counts=self._node.catalogue.shares_label_counts(self._source),
        )
        return self

    def post_by(self, end_ranks: Callable[[], None]) -> None:
        """Begin to post what `put` is given. `end_ranks` is called when the server will not take it."""
        self._poster = RoundPoster(self._node, self._message.attempt_id, self.plan, self._stopped, end_ranks)

    def put(self, pack: RoundPack) -> None:
        """Take rounds from rank 0's runner. Never blocks."""
        assert self._poster is not None
        self._poster.put(pack)

    def finish(self) -> str:
        """Wait until all rounds are posted. Returns a sentence where they could not be, else nothing."""
        if self._poster is None:
            return ""
        self._poster.finish()
        return self._poster.problem

    def __exit__(self, *_: object) -> None:
        self.finish()
        self._borrowed.close()

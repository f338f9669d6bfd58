"""What rank 0 says of its rounds: curves through the metric log, and packs of rounds for the server."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from trainer.federated.facts import RoundFacts
from trainer.federated.memory_files import flat_memory
from trainer.federated.strategy import State
from trainer.simulation.messages import MOST_CURVES, SimulatedRound
from trainer.simulation.plan import RoundPack, SimulationPlan
from trainer.simulation.results import RoundResults
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.weights import write_weights

logger = logging.getLogger(__name__)

OpenLog = Callable[[str], MetricLog]
"""Gives the log of a source, such as `aggregate`."""
Post = Callable[[RoundPack], None]

POST_SECONDS = 1.0
"""Pause between two packs: each writes the weights, and the agent delivers them."""
PACK_BYTES = 400_000
"""Of the rounds in a pack, as JSON: the server takes 1 MB a message."""
LABEL_BYTES = 300_000
"""Of the label counts in a pack, as JSON: with many clients and long names of classes they alone would be more than 1 MB."""


class Teller:
    """Use it as a context manager, whose end sends what is left of the curves."""

    def __init__(self, spec: JobSpec, plan: SimulationPlan, open_log: OpenLog, post: Post) -> None:
        assert spec.federated is not None
        self._label_counts: list[dict[str, int]] | None = None
        """Goes with the first pack."""
        self._federated = spec.federated
        self._plan = plan
        self._post = post
        self._open_log = open_log
        self._stack = ExitStack()
        self._waiting: list[SimulatedRound] = []
        self._num_bytes = 0
        self._posted_at = time.monotonic()

    def __enter__(self) -> Self:
        total = self._federated.clients.total
        sources = [f"client {client}" for client in range(total)] if total <= MOST_CURVES else []
        self._aggregate, *self._clients = (
            self._stack.enter_context(self._open_log(name)) for name in ("aggregate", *sources)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tell_labels(self, counts: list[dict[str, int]]) -> None:
        """Send the first clients' rows of each class with the first pack, unless they would make it more than the server takes."""
        if (num_bytes := len(json.dumps(counts, ensure_ascii=False).encode())) > LABEL_BYTES:
            logger.warning(
                "The job's page will not show who has which labels: with so many classes the counts are %d bytes, and %d are sent "
                "at most.",
                num_bytes,
                LABEL_BYTES,
            )
            return
        self._label_counts = counts

    def tell(
        self,
        number: int,
        results: RoundResults,
        metrics: dict[str, float],
        facts: RoundFacts,
        state: State,
        *,
        opened: float,
        stopped: str,
    ) -> None:
        """Log the curves of a closed round and, where it is time or this is the last one, post what has gathered.

        `state` is that after the round; `opened` in Unix seconds.
        """
        step = number * self._federated.local_epochs
        self._aggregate.log(step, metrics)
        if self._clients:
            for client in results.counted():
                self._clients[client].log(step, results.metrics(client))
        round_ = self._describe(number, results, metrics, facts, opened=opened, stopped=stopped)
        self._waiting.append(round_)
        self._num_bytes += len(round_.model_dump_json())
        is_last = bool(stopped) or number == self._plan.start.last_round
        if is_last or self._num_bytes > PACK_BYTES or time.monotonic() - self._posted_at >= POST_SECONDS:
            self._post_all(number, state)

    def _describe(
        self,
        number: int,
        results: RoundResults,
        metrics: dict[str, float],
        facts: RoundFacts,
        *,
        opened: float,
        stopped: str,
    ) -> SimulatedRound:
        clients = results.described(facts.norms)
        return SimulatedRound.of(
            clients,
            facts.model_dump(mode="json", exclude_none=True),
            round=number,
            opened_ms=int(opened * 1000),
            closed_ms=int(time.time() * 1000),
            metrics=metrics,
            stopped=stopped,
        )

    def _post_all(self, number: int, state: State) -> None:
        folder = self._plan.folder
        weights, memory = folder / f"weights-{number}.safetensors", None
        write_weights(weights, state.weights)
        if state.memory:
            memory = folder / f"memory-{number}.safetensors"
            write_weights(memory, flat_memory(state.memory))
        for log in (self._aggregate, *self._clients):
            log.flush()  # the curves go ahead of the rounds that may end the job
        self._post(RoundPack(rounds=self._waiting, weights=weights, memory=memory, label_counts=self._label_counts))
        self._waiting, self._num_bytes, self._label_counts = [], 0, None
        self._posted_at = time.monotonic()

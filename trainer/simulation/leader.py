"""What rank 0 does besides: the server's part of a round, with the server's mathematics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.federated.aggregate import ClientUpdate
from trainer.federated.facts import RoundFacts
from trainer.federated.memory_files import memory_by_kind
from trainer.federated.privacy import epsilon_after
from trainer.federated.strategy import State, build_strategy
from trainer.sections.strategy import min_updates
from trainer.simulation.plan import SimulationFailed, SimulationPlan
from trainer.spec import JobSpec
from trainer.weights import map_weights


class Leader:
    """The state that the rounds carry on."""

    def __init__(self, spec: JobSpec, plan: SimulationPlan) -> None:
        assert spec.federated is not None
        assert plan.weights is not None  # rank 0's agent has fetched them
        self._federated = spec.federated
        self._strategy = build_strategy(spec)
        memory = memory_by_kind(map_weights(plan.memory)) if plan.memory else {}
        self.state = State(weights=map_weights(plan.weights), memory=memory)

    def close(self, number: int, updates: Sequence[ClientUpdate], *, num_drawn: int) -> RoundFacts:
        """Take the round's updates into the state. Raises SimulationFailed where they do not make weights."""
        quorum = math.ceil(self._federated.clients.quorum * num_drawn)
        needed = max(min_updates(self._federated.aggregator), quorum)
        if len(updates) < needed:
            raise SimulationFailed(
                f"Round {number} failed: {len(updates)} of {num_drawn} clients gave an update that can be summed, and {needed} are "
                "needed. The job's log says what was wrong with the others; most often the learning rate is too high."
            )
        try:
            total = self._strategy.aggregate(self.state, updates)
            self.state = self._strategy.step(self.state, total)
        except ValueError as error:
            raise SimulationFailed(f"Round {number} could not be aggregated: {error}") from error
        if self._federated.privacy is None:
            return total.facts
        spent = epsilon_after(self._federated.privacy, self._federated.clients, number)
        return total.facts.model_copy(update={"epsilon": spent})

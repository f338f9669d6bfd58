"""Who takes part in a federated job: real nodes or virtual clients, and who of them is drawn for a round."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from trainer.sections.part import Label, Part

NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Clients(Part):
    num: int = Field(default=2, ge=1, le=10_000, title="Number of nodes")
    """Each is one client of the job. In a simulation: the nodes that share its clients out."""
    simulate: int | None = Field(default=None, ge=1, le=100_000, title="Simulated clients", examples=[100])
    """Virtual clients, trained side by side on the nodes' processors. Empty: every client is a node."""
    processes: int | None = Field(default=None, ge=1, le=256, title="Processes per node")
    """Simulation: processes of each node that train clients side by side, one slot each. Empty: 2."""
    fraction: float = Field(default=1.0, gt=0, le=1, title="Share drawn each round")
    """Share of the clients that is drawn for each round (at least one)."""
    per_round: int | None = Field(default=None, ge=1, le=100_000, title="Clients drawn each round")
    """Clients drawn for each round, as a number; it takes the place of the share."""
    draw_labels: tuple[Label, ...] = Field(default=(), max_length=20, title="Draw evenly by node label")
    """Node labels, such as north and south: each round draws equally many clients from the nodes of each. Empty: from all alike."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Least share of a round's drawn clients that must return before its deadline; with fewer the job fails."""
    nodes: tuple[NodeName, ...] = Field(default=(), max_length=10_000, title="Only these nodes")
    """Names of the nodes that may be clients, in the order of the clients' numbers. Empty: any node that fits, numbered by name."""

    @model_validator(mode="before")
    @classmethod
    def _simulate_on_one_node(cls, raw: object) -> object:
        """A simulation that does not say how many nodes share it takes one."""
        if isinstance(raw, dict) and raw.get("simulate") is not None and raw.get("num") is None:
            return {**raw, "num": 1}
        return raw

    @property
    def total(self) -> int:
        """Clients of the job, real or virtual."""
        return self.simulate or self.num

    @property
    def processes_per_node(self) -> int:
        """Slots that the job needs on each node."""
        return (self.processes or 2) if self.simulate else 1

    @property
    def num_drawn(self) -> int:
        """Clients drawn for a round."""
        return self.per_round or max(1, round(self.fraction * self.total))

    @property
    def share_drawn(self) -> float:
        """Clients drawn for a round over all clients."""
        return self.num_drawn / self.total

    @property
    def chance_alone(self) -> float:
        """Privacy: the chance that nobody but one given client is in a round, where each is drawn by itself and an empty
        draw is drawn again: q (1 - q)^(n - 1) / (1 - (1 - q)^n)."""
        q = self.share_drawn
        return 0.0 if q == 1 else q * (1 - q) ** (self.total - 1) / (1 - (1 - q) ** self.total)

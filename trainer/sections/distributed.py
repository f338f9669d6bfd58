"""The section `distributed`: ranks that share one training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.sections.part import Part


class Ddp(Part):
    """Every rank holds the whole model; gradients are averaged at each step (Li et al. 2020)."""

    name: Literal["ddp"]


DistributedStrategy = Ddp  # becomes a discriminated union with the second strategy


class Distributed(Part):
    strategy: DistributedStrategy = Ddp(name="ddp")
    nodes: int = Field(default=2, ge=1, le=1000)
    """Nodes that train together; the job starts when all of them have room."""
    processes_per_node: int = Field(default=1, ge=1, le=64)
    """Ranks on each node; each takes one slot."""
    epochs: int = Field(default=10, ge=1, le=100_000)
    """Passes over the training rows."""

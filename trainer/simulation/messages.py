"""Where a simulation goes on, and what it says of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field

from trainer.message import BlobRef, Digest, Message

MOST_CLIENTS_TOLD = 100
"""Virtual clients of which single numbers are told, the first ones by index: with 100 of them a round is 20 kB, and the server
takes 1 MB a message."""
MOST_CURVES = 20
"""Clients of a job up to which each has curves of its own, as `client 3`; more would drown the page."""


class RoundStart(Message):
    """Where a simulation goes on."""

    round: int = Field(ge=1)
    """The first round to train."""
    last_round: int = Field(ge=1)
    """The last round that the job is to have."""
    weights: BlobRef
    memory: BlobRef | None = None
    history: list[tuple[int, float]] = []
    """Number and watched value of the earlier rounds that `early_stop.worth_keeping` names. Empty without `stop`."""
    resumed_at: int = Field(default=0, ge=0)
    """The last round with which the job had ended before it was resumed by hand, for `early_stop.why_stop`."""


class SimulatedClient(Message):
    """One virtual client in one round."""

    client: int = Field(ge=0)
    num_examples: int = Field(ge=1)
    num_steps: int = Field(ge=0)
    seconds_training: float = 0.0
    """Its share of the time, where clients were trained side by side."""
    loss: float | None = None
    """Training loss of the last local epoch."""
    norm: float | None = None
    """Euclidean norm of its update."""


class SimulatedRound(Message):
    """What came of one round of a simulation."""

    round: int = Field(ge=1)
    opened_ms: int
    closed_ms: int
    metrics: dict[str, float]
    """train/*: means over the round's clients, by their examples. server/*: the new weights on the test rows."""
    facts: dict[str, Any]
    """`trainer.federated.facts.RoundFacts` as JSON; `weights` and `norms` of those in `clients` alone."""
    num_clients: int = Field(ge=1)
    num_examples: int = Field(ge=1)
    """Of all of the round's clients, as `seconds_training`."""
    seconds_training: float = Field(ge=0)
    clients: list[SimulatedClient] = Field(max_length=MOST_CLIENTS_TOLD)
    """The first ones by index."""
    stopped: Annotated[str, Field(max_length=2000)] = ""
    """Why this is the last round although more were planned, as `early_stop.why_stop` says it; empty where it is not."""

    @classmethod
    def of(cls, clients: Sequence[SimulatedClient], facts: dict[str, Any], **rest: Any) -> Self:
        """Sum up the round's clients, all of them by index, and tell of the first ones one by one."""
        lists = {name: facts[name][:MOST_CLIENTS_TOLD] for name in ("weights", "norms") if facts.get(name)}
        return cls(
            facts=facts | lists,
            num_clients=len(clients),
            num_examples=sum(client.num_examples for client in clients),
            seconds_training=sum(client.seconds_training for client in clients),
            clients=list(clients[:MOST_CLIENTS_TOLD]),
            **rest,
        )


class SimulatedRounds(Message):
    """POST /node/v1/attempts/<id>/simulated by the node of rank 0, after the blobs were sent -> Verdict.

    Consecutive rounds and the state after the last of them. What the server has already changes nothing.
    """

    rounds: list[SimulatedRound] = Field(min_length=1, max_length=10_000)
    weights: Digest
    memory: Digest | None = None
    label_counts: Annotated[list[dict[str, int]], Field(max_length=MOST_CLIENTS_TOLD)] | None = None
    """With an attempt's first rounds: training rows of each class, as `labels.count_labels`, of the job's first clients by index,
    where the node's policy shares them."""

"""Where a simulation goes on, and what it says of its rounds."""

from __future__ import annotations

from pydantic import Field

from trainer.message import BlobRef, Digest, Message


class RoundStart(Message):
    """Where a simulation goes on."""

    round: int = Field(ge=1)
    """The first round to train."""
    last_round: int = Field(ge=1)
    """The last round that the job is to have."""
    weights: BlobRef
    memory: BlobRef | None = None


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
    facts: dict[str, object]
    """`trainer.federated.facts.RoundFacts` as JSON."""
    clients: list[SimulatedClient]
    stopped: str = ""
    """Why this is the last round although more were planned; empty where it is not."""


class SimulatedRounds(Message):
    """POST /node/v1/attempts/<id>/simulated by the node of rank 0, after the blobs were sent -> Verdict.

    Consecutive rounds and the state after the last of them. What the server has already changes nothing.
    """

    rounds: list[SimulatedRound] = Field(min_length=1, max_length=10_000)
    weights: Digest
    memory: Digest | None = None

"""What the aggregation of a round says of itself, for the round's row and the job's page. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RoundFacts(BaseModel):
    """Lists are in the order of the round's updates, that is, by client index. What does not apply is None."""

    model_config = ConfigDict(frozen=True)

    weights: list[float] | None = None
    """Share of each update in the result; they sum to 1. None where coordinates are chosen one by one."""
    norms: list[float] | None = None
    """Euclidean norm of each update, before any clipping."""
    num_clipped: int | None = None
    """Updates that were cut to the norm bound."""
    left_out: list[int] | None = None
    """Indices of the clients whose updates the aggregator threw away (Krum, Bulyan)."""
    clip_norm: float | None = None
    """Privacy: the norm that updates were cut to in this round."""
    noise_std: float | None = None
    """Privacy: standard deviation of the noise on each coordinate of the mean update."""
    num_values: int | None = None
    """Secure aggregation: whole numbers in each masked update; `Participation.num_saturated` counts of these."""
    epsilon: float | None = None
    """Privacy: epsilon spent up to and including this round, at the spec's delta."""

"""What a client says beside its update. Torch-free: the agent passes it on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ClientResult(BaseModel):
    """The numbers of one client's round. They go into `protocol.UpdateOffer` under the same names."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")  # a loss may diverge

    num_examples: int
    """Rows that the client trained on: its weight in the mean."""
    num_steps: int
    """Optimizer steps that it took."""
    metrics: dict[str, float]
    """global/*: the incoming weights on the test rows. train/*: the last local epoch's rows as its steps saw them.
    test/*: the trained weights on the test rows. In a round without evaluation, train/* alone."""
    loss_before: float | None = None
    """Mean loss of the incoming weights on the training rows, where the strategy weighs by it."""
    seconds_training: float
    """Time of the local epochs alone, without reading, evaluating and writing."""
    label_counts: dict[str, int] | None = None
    """Training rows of each class, where the client may share them."""

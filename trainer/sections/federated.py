"""The section `federated`: clients that train on their own rows, round by round."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.sections.clients import Clients
from trainer.sections.data import SourceName
from trainer.sections.disagreement import Disagreement
from trainer.sections.federated_checks import check_parts
from trainer.sections.part import Part
from trainer.sections.privacy import CentralPrivacy, LocalPrivacy, SecureAggregation
from trainer.sections.strategy import Aggregator, FedAvg, Mean, ServerOptimizer, ServerSgd, Strategy


class Float32Encoding(Part):
    """Updates travel as they are: 4 bytes a parameter."""

    name: Literal["float32"]


class Bfloat16Encoding(Part):
    """Rounded to bfloat16: 2 bytes a parameter."""

    name: Literal["bfloat16"]


class Int8Encoding(Part):
    """Rounded to 255 levels at random, so that the mean stays true (QSGD, Alistarh et al. 2017): 1 byte a parameter."""

    name: Literal["int8"]


class TopKEncoding(Part):
    """Only the largest changes travel; what is left out is kept and added to the next update (Stich et al. 2018)."""

    name: Literal["top_k"]
    fraction: float = Field(default=0.05, gt=0, le=1)
    """Share of the parameters that travels, 8 bytes each."""


Encoding = Annotated[Float32Encoding | Bfloat16Encoding | Int8Encoding | TopKEncoding, Field(discriminator="name")]


class EarlyStop(Part):
    """End before the last round, when the goal is reached or nothing gets better any more."""

    metric: Literal[
        "test/loss", "test/accuracy", "test/r2", "train/loss", "server/loss", "server/accuracy", "server/r2"
    ] = "test/loss"
    """What is looked at: test and train are means over a round's clients, server is the round's new weights on the rows that the
    server (or the simulation) holds out. A loss should fall, accuracy and R2 should rise."""
    target: float | None = None
    """Stop as soon as the metric is this good. Empty: no target."""
    patience: int | None = Field(default=None, ge=1, le=100_000, examples=[5])
    """Stop after this many rounds without a better value. Empty: never."""
    min_delta: float = Field(default=0.0, ge=0)
    """Least improvement that counts as better."""

    @model_validator(mode="after")
    def _some_goal(self) -> Self:
        if self.target is None and self.patience is None:
            raise Disagreement("Early stopping needs a goal: set `patience`, `target` or both.")
        return self


class Federated(Part):
    rounds: int = Field(default=20, ge=1, le=100_000)
    """Exchanges of weights and updates."""
    local_epochs: int = Field(default=1, ge=1, le=1000)
    """Passes of each client over its rows in a round."""
    strategy: Strategy = FedAvg(name="fedavg")
    """What each client does, and what its update weighs."""
    aggregator: Aggregator = Mean(name="mean")
    """How the updates of a round become one."""
    server_optimizer: ServerOptimizer = ServerSgd(name="sgd")
    """How the server applies the aggregated update."""
    clients: Clients = Clients()
    encoding: Encoding = Field(default=Float32Encoding(name="float32"), title="Update encoding")
    """Number format in which updates travel."""
    secure_aggregation: SecureAggregation | None = None
    """Masks that cancel in the sum, so that the server sees no single update. Empty: none."""
    privacy: CentralPrivacy | None = Field(default=None, title="Central differential privacy")
    """Noise that the server adds to each round's sum. Empty: none."""
    local_privacy: LocalPrivacy | None = Field(default=None, title="Local differential privacy")
    """Noise that each client adds to each of its steps (DP-SGD). Empty: none."""
    stop: EarlyStop | None = Field(default=None, title="Early stop")
    """When to end before the last round. Empty: never."""
    evaluate_every: int = Field(default=1, ge=1, le=100_000, title="Evaluate every")
    """Rounds from one evaluation on the clients' test rows to the next. The last round is always evaluated."""
    server_data: SourceName | None = Field(default=None, title="Evaluate on the server's data")
    """Data source of the server itself, on which it measures each evaluated round's new weights (server/loss and its like). Of a
    built-in data set these are the test rows. Empty: only the clients measure."""
    round_deadline_seconds: float = Field(default=600, ge=1, le=7 * 86_400)
    """Seconds after which a round closes with the updates that are in. A client that shows progress gets up to as long again."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        check_parts(self)
        return self

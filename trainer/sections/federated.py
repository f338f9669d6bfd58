"""The section `federated`: clients that train on their own rows, round by round."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from trainer.sections.part import Part
from trainer.sections.strategy import (
    Aggregator,
    Bulyan,
    FedAvg,
    Krum,
    Mean,
    Median,
    ServerOptimizer,
    ServerSgd,
    Strategy,
    TrimmedMean,
    min_updates,
)

NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Clients(Part):
    num: int = Field(default=2, ge=1, le=10_000, title="Number of clients")
    """Clients of the job. Each one runs on a node of its own."""
    fraction: float = Field(default=1.0, gt=0, le=1, title="Share drawn each round")
    """Share of the clients that is drawn for each round (at least one)."""
    per_round: int | None = Field(default=None, ge=1, le=10_000, title="Clients drawn each round")
    """Clients drawn for each round, as a number; it takes the place of the share."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Least share of a round's drawn clients that must return before its deadline; with fewer the job fails."""
    nodes: tuple[NodeName, ...] = Field(default=(), max_length=10_000, title="Only these nodes")
    """Names of the nodes that may be clients, in the order of the clients' numbers. Empty: any node that fits, numbered by name."""

    @property
    def num_drawn(self) -> int:
        """Clients drawn for a round."""
        return self.per_round or max(1, round(self.fraction * self.num))

    @property
    def share_drawn(self) -> float:
        """Clients drawn for a round over all clients."""
        return self.num_drawn / self.num

    @property
    def chance_alone(self) -> float:
        """Privacy: the chance that nobody but one given client is in a round, where each is drawn by itself and an empty
        draw is drawn again: q (1 - q)^(n - 1) / (1 - (1 - q)^n)."""
        q = self.share_drawn
        return 0.0 if q == 1 else q * (1 - q) ** (self.num - 1) / (1 - (1 - q) ** self.num)


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


class FixedClip(Part):
    """Every update is cut to the same norm."""

    name: Literal["fixed"]
    norm: float = Field(default=1.0, gt=0, le=1e6)
    """Longest update, as a Euclidean norm over all tensors."""


class AdaptiveClip(Part):
    """The norm follows a quantile of the clients' norms (Andrew et al. 2021)."""

    name: Literal["adaptive"]
    initial_norm: float = Field(default=1.0, gt=0, le=1e6)
    """Norm of the first round."""
    quantile: float = Field(default=0.5, gt=0, lt=1)
    """Share of the updates that should be shorter than the norm."""
    rate: float = Field(default=0.2, gt=0, le=10)
    """Speed at which the norm follows: it is multiplied by exp(-rate * (share below - quantile))."""


Clip = Annotated[FixedClip | AdaptiveClip, Field(discriminator="name")]


class CentralPrivacy(Part):
    """Central differential privacy for clients (DP-FedAvg, McMahan et al. 2018): updates are cut to a norm and weigh the
    same, and the server adds Gaussian noise to their sum."""

    clip: Clip = FixedClip(name="fixed")
    noise_multiplier: float = Field(default=1.0, ge=1e-6, le=1000)
    """Standard deviation of the noise on the sum of updates, in units of the clip norm."""
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """The probability with which the guarantee may fail. Below 1 / number of clients."""
    max_epsilon: float | None = Field(default=None, gt=0, le=1000)
    """The job ends with the last round that stays within this epsilon. Empty: no limit."""


class EarlyStop(Part):
    """End before the last round, when the goal is reached or nothing gets better any more."""

    metric: Literal["test/loss", "test/accuracy", "test/r2", "train/loss"] = "test/loss"
    """Mean over a round's clients that is looked at. A loss should fall, accuracy and R2 should rise."""
    target: float | None = None
    """Stop as soon as the metric is this good. Empty: no target."""
    patience: int | None = Field(default=None, ge=1, le=100_000)
    """Stop after this many rounds without a better value. Empty: never."""
    min_delta: float = Field(default=0.0, ge=0)
    """Least improvement that counts as better."""

    @model_validator(mode="after")
    def _some_goal(self) -> Self:
        if self.target is None and self.patience is None:
            raise ValueError("Early stopping needs a target or a patience: give one of them, or remove the section.")
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
    privacy: CentralPrivacy | None = None
    """Central differential privacy. Empty: none."""
    stop: EarlyStop | None = Field(default=None, title="Early stop")
    """When to end before the last round. Empty: never."""
    evaluate_every: int = Field(default=1, ge=1, le=100_000, title="Evaluate every")
    """Rounds from one evaluation on the clients' test rows to the next. The last round is always evaluated."""
    round_deadline_seconds: float = Field(default=600, ge=1, le=7 * 86_400)
    """Seconds after which a round closes with the updates that are in. A client that shows progress gets up to as long again."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        for check in (_check_draw, _check_fusion, _check_robust, _check_privacy, _check_variates):
            check(self)
        return self


def _check_draw(federated: Federated) -> None:
    clients = federated.clients
    if clients.per_round is not None and clients.per_round > clients.num:
        raise ValueError(
            f"clients.per_round is {clients.per_round}, and the job has {clients.num} clients: lower it, or raise clients.num."
        )
    if clients.nodes and len(set(clients.nodes)) < clients.num:
        raise ValueError(
            f"clients.nodes names {len(set(clients.nodes))} nodes, and the job has {clients.num} clients: name more, or lower clients.num."
        )


def _check_fusion(federated: Federated) -> None:
    strategy = federated.strategy
    if strategy.name == "one_shot" and federated.rounds != 1:
        raise ValueError("One-shot fusion has one round: set rounds to 1, and local_epochs to the whole training.")
    if strategy.name in ("fusion", "one_shot") and strategy.weights:
        if len(strategy.weights) != federated.clients.num:
            raise ValueError(
                f"strategy.weights has {len(strategy.weights)} weights for {federated.clients.num} clients: give one for each."
            )
        if not sum(strategy.weights):
            raise ValueError("strategy.weights are all 0: give at least one client a weight.")
    if strategy.name in ("fusion", "one_shot") and federated.server_optimizer != ServerSgd(name="sgd"):
        raise ValueError(
            "Weighted fusion is the sum of the clients' models as it is: set server_optimizer to sgd, with the learning rate 1 and "
            "no momentum."
        )


def _check_robust(federated: Federated) -> None:
    aggregator, strategy, num = federated.aggregator, federated.strategy, federated.clients.num_drawn
    least = min_updates(aggregator)
    if isinstance(aggregator, Krum) and num < 2 * aggregator.attackers + 3:
        raise ValueError(
            f"Krum with {aggregator.attackers} attackers needs at least {2 * aggregator.attackers + 3} clients a round, "
            f"and {num} are drawn: draw more, or lower aggregator.attackers."
        )
    if isinstance(aggregator, Krum) and aggregator.select > num - aggregator.attackers:
        raise ValueError(
            f"aggregator.select is {aggregator.select}: of {num} clients with {aggregator.attackers} attackers at most "
            f"{num - aggregator.attackers} may be kept."
        )
    if isinstance(aggregator, TrimmedMean) and num < least:
        raise ValueError(
            f"A trimmed mean that cuts off {aggregator.trim:.0%} needs at least {least} clients a round to cut "
            f"off one, and {num} are drawn: draw more, or raise aggregator.trim."
        )
    if isinstance(aggregator, Median) and num < least:
        raise ValueError(
            f"The median of {num} updates is their mean, and protects from nobody: draw at least {least} "
            "clients a round, or set aggregator to mean."
        )
    if isinstance(aggregator, Bulyan) and num < least:
        raise ValueError(
            f"Bulyan with {aggregator.attackers} attackers needs at least {least} clients a round, "
            f"and {num} are drawn: draw more, or lower aggregator.attackers."
        )
    if strategy.name in ("scaffold", "fednova", "qfedavg", "fusion", "one_shot") and not isinstance(aggregator, Mean):
        raise ValueError(
            f"The strategy {strategy.name} is defined for the mean of all updates: set aggregator to mean, or choose the "
            "strategy fedavg, fedprox or fedbn."
        )


def _check_privacy(federated: Federated) -> None:
    privacy, clients = federated.privacy, federated.clients
    if privacy is None:
        return
    if federated.strategy.name not in ("fedavg", "fedprox", "fedbn"):
        raise ValueError(
            "Differential privacy needs updates that weigh the same: set strategy to fedavg, fedprox or fedbn."
        )
    if not isinstance(federated.aggregator, Mean):
        raise ValueError("Differential privacy needs the plain sum of the updates: set aggregator to mean.")
    if privacy.delta >= 1 / clients.num:
        raise ValueError(
            f"privacy.delta is {privacy.delta:g}: with {clients.num} clients it must be below {1 / clients.num:g}, or it "
            "allows to give one of them away."
        )
    # What is left of delta must carry the accountant's bound.
    if federated.rounds * clients.chance_alone > privacy.delta / 2:
        field = "clients.fraction" if clients.per_round is None else "clients.per_round"
        raise ValueError(
            f"With privacy each of the {clients.num} clients is drawn by itself, and with about {clients.num_drawn} a round one "
            f"would be alone in one of {federated.rounds} rounds more often than delta / 2 = {privacy.delta / 2:g} allows: raise "
            f"{field} (drawing all clients is always allowed), or raise clients.num."
        )
    if isinstance(privacy.clip, AdaptiveClip) and clients.num_drawn <= 10 * privacy.noise_multiplier:
        raise ValueError(
            f"The adaptive clip counts the short updates, and with {clients.num_drawn} clients a round the count gives away more "
            f"than privacy.noise_multiplier {privacy.noise_multiplier:g} allows: lower it, draw more than "
            f"{10 * privacy.noise_multiplier:g} clients, or set clip to fixed."
        )


def _check_variates(federated: Federated) -> None:
    if federated.strategy.name == "scaffold" and federated.encoding.name != "float32":
        raise ValueError("SCAFFOLD's control variates travel as they are: set encoding to float32.")
    server = federated.server_optimizer
    if federated.strategy.name == "scaffold" and (not isinstance(server, ServerSgd) or server.momentum):
        raise ValueError(
            "SCAFFOLD is defined for plain steps of the server, without a memory of its own: set server_optimizer to sgd, with no "
            "momentum."
        )

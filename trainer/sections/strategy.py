"""How clients train and how their updates become the next weights: three choices that compose.

* `strategy`: what a client does locally, and what its update weighs;
* `aggregator`: how the weighted updates of a round become one;
* `server_optimizer`: how the server applies that one, as if it were a gradient (Reddi et al. 2021, algorithm 1).

FedAvg is `fedavg`, `mean` and `sgd` with lr 1. FedAvgM, FedAdagrad, FedAdam and FedYogi differ in the server optimizer
alone, so FedProx with FedAdam is simply both chosen.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import Field

from trainer.sections.part import Part
from trainer.sections.training import Beta

ServerRate = Annotated[float, Field(gt=0, le=100)]
Attackers = Annotated[int, Field(ge=0, le=5_000)]
FusionWeight = Annotated[float, Field(ge=0, le=1e6)]

# --- what clients do --------------------------------------------------------------------------------------------------


class FedAvg(Part):
    """Clients train alone, and count by their examples (McMahan et al. 2017)."""

    name: Literal["fedavg"]


class FedProx(Part):
    """FedAvg with a pull towards the global weights: adds mu/2 * |w - w_global|^2 to each loss (Li et al. 2020)."""

    name: Literal["fedprox"]
    mu: float = Field(default=0.01, ge=0, le=1000)
    """Strength of the pull. 0 is FedAvg."""


class Scaffold(Part):
    """Control variates take the clients' drift out of their steps (Karimireddy et al. 2020, option II)."""

    name: Literal["scaffold"]


class FedNova(Part):
    """Updates count per local step, so that clients with more steps do not pull harder (Wang et al. 2020)."""

    name: Literal["fednova"]


class FedBn(Part):
    """Normalisation layers stay with each client; all others are averaged (Li et al. 2021)."""

    name: Literal["fedbn"]


class QFedAvg(Part):
    """Clients with a higher loss count more, for fairer results (q-FedAvg, Li et al. 2020)."""

    name: Literal["qfedavg"]
    q: float = Field(default=0.2, ge=0, le=20)
    """0 weighs clients equally; larger values favour those that do worst."""


class Fusion(Part):
    """Weighted model fusion: f = sum of w_i * f_i, with weights that you give."""

    name: Literal["fusion"]
    weights: tuple[FusionWeight, ...] = Field(default=(), max_length=10_000)
    """One weight for each client, in the order of clients.nodes, else of their nodes' names; divided by their sum. Empty: by examples."""


class OneShot(Part):
    """Each client trains to the end alone; the models are fused once (Guha et al. 2019). Set rounds to 1."""

    name: Literal["one_shot"]
    weights: tuple[FusionWeight, ...] = Field(default=(), max_length=10_000)
    """One weight for each client, in the order of clients.nodes, else of their nodes' names; divided by their sum. Empty: by examples."""


class FedBuff(Part):
    """Buffered asynchronous rounds (Nguyen et al. 2022, algorithm 1): as soon as `buffer` updates are in, from whichever earlier
    weights, they become the next weights, and slow clients hold up nobody."""

    name: Literal["fedbuff"]
    buffer: int = Field(default=2, ge=1, le=10_000)
    """Updates that make a round. At most the number of clients."""
    max_staleness: int = Field(default=20, ge=0, le=100_000)
    """Rounds that an update's weights may be behind; an older update is left out as late."""
    staleness_power: float = Field(default=0.5, ge=0, le=10)
    """An update that is s rounds behind counts 1 / (1 + s)^power. 0: like a fresh one."""


Strategy = Annotated[
    FedAvg | FedProx | Scaffold | FedNova | FedBn | QFedAvg | Fusion | OneShot | FedBuff, Field(discriminator="name")
]

# --- how updates become one -------------------------------------------------------------------------------------------


class Mean(Part):
    """The weighted mean."""

    name: Literal["mean"]


class NormBound(Part):
    """The weighted mean of updates cut to a norm, so that none pulls harder than that (Sun et al. 2019)."""

    name: Literal["norm_bound"]
    max_norm: float = Field(default=10.0, gt=0, le=1e9)
    """Longest update, as a Euclidean norm over all tensors; longer ones are scaled down to it."""


class Median(Part):
    """The median of each coordinate, weights aside (Yin et al. 2018)."""

    name: Literal["median"]


class TrimmedMean(Part):
    """The mean of each coordinate without its highest and lowest values, weights aside (Yin et al. 2018)."""

    name: Literal["trimmed_mean"]
    trim: float = Field(default=0.2, gt=0, lt=0.5)
    """Share of the values that is cut off at either end (rounded down to whole clients)."""


class Krum(Part):
    """The update, or the mean of the few updates, closest to its neighbours (Blanchard et al. 2017)."""

    name: Literal["krum"]
    attackers: Attackers = 1
    """Clients that may lie. A round needs at least 2 * attackers + 3 updates."""
    select: int = Field(default=1, ge=1, le=10_000)
    """Updates that are kept: 1 is Krum, more is Multi-Krum."""


class Bulyan(Part):
    """Krum chooses, then a trimmed mean around the median of each coordinate (El Mhamdi et al. 2018)."""

    name: Literal["bulyan"]
    attackers: Attackers = 1
    """Clients that may lie. A round needs at least 4 * attackers + 3 updates."""


Aggregator = Annotated[Mean | NormBound | Median | TrimmedMean | Krum | Bulyan, Field(discriminator="name")]


def min_updates(aggregator: Aggregator) -> int:
    """Return the updates without which `aggregator` has no result, or one that is no better than the mean's."""
    match aggregator:
        case Krum():
            return max(2 * aggregator.attackers + 3, aggregator.attackers + aggregator.select)
        case Bulyan():
            return 4 * aggregator.attackers + 3
        case TrimmedMean():
            return ceil(1 / aggregator.trim - 1e-9)  # from there on it cuts off one at either end
        case Median():
            return 3  # that of two is their mean
        case _:
            return 1


# --- how the server applies it ----------------------------------------------------------------------------------------


class ServerSgd(Part):
    """Adds the aggregated update. With momentum it is FedAvgM (Hsu et al. 2019)."""

    name: Literal["sgd"]
    lr: ServerRate = Field(default=1.0, title="Server learning rate")
    """Share of the aggregated update that is added; 1 is FedAvg."""
    momentum: Beta = Field(default=0.0, title="Server momentum")
    """Share of the previous step that is kept; 0.9 is usual for FedAvgM."""


class Adaptive(Part):
    lr: ServerRate = Field(default=0.1, title="Server learning rate")
    """Length of the server's step (eta in the paper)."""
    beta1: Beta = 0.9
    """Decay of the running mean of updates."""
    tau: float = Field(default=1e-3, gt=0, le=1)
    """Adaptivity: the least divisor. Smaller values adapt more."""


class ServerAdagrad(Adaptive):
    """FedAdagrad (Reddi et al. 2021): steps scaled by the sum of squared updates."""

    name: Literal["adagrad"]
    beta1: Beta = 0.0
    """Decay of the running mean of updates."""


class ServerAdam(Adaptive):
    """FedAdam (Reddi et al. 2021): steps scaled by a running mean of squared updates."""

    name: Literal["adam"]
    beta2: Beta = 0.99
    """Decay of the running mean of squared updates."""


class ServerYogi(Adaptive):
    """FedYogi (Reddi et al. 2021): like FedAdam, with a scale that grows and shrinks slowly."""

    name: Literal["yogi"]
    beta2: Beta = 0.99
    """Decay of the running measure of squared updates."""


ServerOptimizer = Annotated[ServerSgd | ServerAdagrad | ServerAdam | ServerYogi, Field(discriminator="name")]

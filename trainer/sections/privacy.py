"""What a federated job hides: from the people who read the model, from the server, or from both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.sections.part import Part


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
    """Protects each client from whoever reads the model, not from the server: updates are cut to a norm and weigh the same, and
    the server adds Gaussian noise to their sum (DP-FedAvg, McMahan et al. 2018)."""

    clip: Clip = FixedClip(name="fixed")
    noise_multiplier: float = Field(default=1.0, ge=1e-6, le=1000)
    """Standard deviation of the noise on the sum of updates, in units of the clip norm."""
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """The probability with which the guarantee may fail. Below 1 / number of clients."""
    max_epsilon: float | None = Field(default=None, gt=0, le=1000)
    """The job ends with the last round that stays within this epsilon. Empty: no limit."""


class LocalPrivacy(Part):
    """Protects each row from everyone but its own node, the server included: each client cuts the gradient of every single row
    and adds Gaussian noise to their sum (DP-SGD, Abadi et al. 2016)."""

    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6)
    """Longest gradient of one row, as a Euclidean norm over all tensors; longer ones are cut."""
    noise_multiplier: float = Field(default=1.0, ge=1e-3, le=1000)
    """Standard deviation of the noise on the sum of gradients, in units of max_grad_norm."""
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """The probability with which the guarantee may fail. Below 1 / number of a client's rows."""


class SecureAggregation(Part):
    """Protects each client's update from the server: masks cancel in the sum of a round, and the sum is all that the server sees
    (Bonawitz et al. 2017). Who reads the model still learns what the sum tells."""

    clip: float = Field(default=4.0, gt=0, le=1e6)
    """Largest change of one parameter in a round; what is beyond is cut, and counted. Smaller values are finer."""
    threshold: float = Field(default=0.67, gt=0.5, le=1)
    """Share of a round's clients (rounded down, plus one) without whom no sum can be unmasked. With t of n needed, fewer than 2 t - n
    clients may collude with the server."""

"""The section `training`: what every client and rank does with a batch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.sections.disagreement import Disagreement
from trainer.sections.part import Part

LearningRate = Annotated[float, Field(gt=0, le=100)]
Decay = Annotated[float, Field(ge=0, le=10)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class SgdOptimizer(Part):
    """Stochastic gradient descent, with momentum if wished."""

    name: Literal["sgd"]
    lr: LearningRate = Field(default=0.1, title="Learning rate")
    """Length of a step along the gradient."""
    momentum: Beta = 0.0
    """Share of the previous step that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum. Needs a momentum above 0."""
    weight_decay: Decay = 0.0
    """L2 penalty added to the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise Disagreement("Nesterov needs a momentum above 0: set `momentum`, for example to 0.9.")
        return self


class AdamOptions(Part):
    lr: LearningRate = Field(default=0.001, title="Learning rate")
    """Length of a step."""
    beta1: Beta = 0.9
    """Decay of the running mean of gradients."""
    beta2: Beta = 0.999
    """Decay of the running mean of squared gradients."""


class AdamOptimizer(AdamOptions):
    """Steps scaled by running means of the gradient and its square (Kingma and Ba 2015)."""

    name: Literal["adam"]
    weight_decay: Decay = 0.0
    """L2 penalty added to the gradient."""


class AdamWOptimizer(AdamOptions):
    """Adam with the weight decay apart from the gradient (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    weight_decay: Decay = 0.01
    """Decay applied to the weights themselves."""


Optimizer = Annotated[SgdOptimizer | AdamOptimizer | AdamWOptimizer, Field(discriminator="name")]


class Training(Part):
    optimizer: Optimizer = SgdOptimizer(name="sgd")
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Rows in each step of one client or rank."""
    loss: Literal["auto", "cross_entropy", "mse", "hinge"] = "auto"
    """auto: cross-entropy for classes, mean squared error for numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; weights stay float32."""

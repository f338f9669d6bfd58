"""The section `model`: each registered model with its own options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.sections.part import Part

Width = Annotated[int, Field(ge=1, le=65_536)]
Norm = Literal["none", "batch", "layer", "group"]


class LinearOptions(Part):
    bias: bool = True
    """Add a learned constant to each output."""


class MlpOptions(Part):
    hidden: tuple[Width, ...] = Field(default=(200, 200), min_length=1, max_length=32, title="Hidden layers")
    """Units of each hidden layer, first to last."""
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    """Non-linearity after each hidden layer."""
    norm: Norm = Field(default="none", title="Normalisation")
    """Normalisation before each non-linearity. batch looks at the other rows of a batch, layer and group at one row alone."""


class CnnOptions(Part):
    channels: tuple[Width, ...] = Field(default=(16, 32), min_length=1, max_length=8)
    """Channels of each 3x3 convolution; a 2x2 max pooling follows each one."""
    hidden: Width = Field(default=64, title="Dense units")
    """Units of the dense layer before the output."""
    norm: Norm = Field(default="none", title="Normalisation")
    """Normalisation before each relu. batch looks at the other rows of a batch, layer and group at one row alone."""


class LinearModel(Part):
    """One linear layer: logistic regression for classes, linear regression for numbers."""

    name: Literal["linear"]
    options: LinearOptions = LinearOptions()


class MlpModel(Part):
    """Dense layers with a non-linearity after each one, for tables and small images."""

    name: Literal["mlp"]
    options: MlpOptions = MlpOptions()


class CnnModel(Part):
    """Convolutions with pooling, then a dense layer, for images."""

    name: Literal["cnn"]
    options: CnnOptions = CnnOptions()


Model = Annotated[LinearModel | MlpModel | CnnModel, Field(discriminator="name")]

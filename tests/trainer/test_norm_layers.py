"""Normalisation layers: where they stand, what they are called, and that they leave all else as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from trainer.federated.names import is_norm
from trainer.models import build_model, least_batch, weights_of
from trainer.sections.model import Model
from trainer.sources import BUILTIN_SOURCES
from trainer.training import batches_of

DIGITS = BUILTIN_SOURCES["digits"]
KINDS = ("batch", "layer", "group")


def model_of(name: str, **options: Any) -> Model:
    return TypeAdapter(Model).validate_python({"name": name, "options": options})


def built(name: str, norm: str) -> nn.Module:
    return build_model(model_of(name, norm=norm), DIGITS, seed=3)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("norm", KINDS)
def test_every_choice_starts_from_the_same_weights(name: str, norm: str) -> None:
    plain, normed = weights_of(built(name, "none")), weights_of(built(name, norm))
    assert not any(is_norm(tensor) for tensor in plain)
    others = {tensor: value for tensor, value in normed.items() if not is_norm(tensor)}
    assert others.keys() == plain.keys()
    assert all((others[tensor] == plain[tensor]).all() for tensor in plain)


def test_plain_models_keep_their_names() -> None:
    assert list(weights_of(built("mlp", "none"))) == [f"{n}.{kind}" for n in (1, 3, 5) for kind in ("weight", "bias")]
    assert list(weights_of(built("cnn", "none"))) == [
        f"{n}.{kind}" for n in (0, 3, 7, 9) for kind in ("weight", "bias")
    ]


def test_the_layers_stand_before_the_activations() -> None:
    kinds = [type(layer) for layer in built("mlp", "layer").children()]
    hidden = [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]
    kinds = [type(layer) for layer in built("cnn", "batch").children()]
    convolution = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert kinds == [*convolution, *convolution, nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_running_statistics_travel_as_norm_tensors() -> None:
    normed = {tensor for tensor in weights_of(built("mlp", "batch")) if is_norm(tensor)}
    kinds = ("weight", "bias", "running_mean", "running_var")
    assert normed == {f"norm{number}.{kind}" for number in (1, 2) for kind in kinds}


@pytest.mark.parametrize(("width", "groups"), [(200, 4), (16, 8), (64, 8), (8, 4), (6, 1), (4, 2), (2, 1), (7, 1)])
def test_groups_are_equal_and_never_of_one_channel(width: int, groups: int) -> None:
    model = build_model(model_of("mlp", hidden=[width], norm="group"), DIGITS, seed=0)
    (norm,) = (layer for layer in model.children() if isinstance(layer, nn.GroupNorm))
    assert norm.num_groups == groups
    assert model(torch.ones(1, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize(("norm", "least"), [("none", 1), ("batch", 2), ("layer", 1), ("group", 1)])
def test_the_least_batch_is_one_that_trains(name: str, norm: str, least: int) -> None:
    model = built(name, norm)
    assert least_batch(model) == least
    model.train()
    assert model(torch.rand(least, 1, 8, 8)).shape == (least, 10)


@pytest.mark.parametrize(
    ("num_rows", "least", "sizes"),
    [(9, 1, [4, 4, 1]), (9, 2, [4, 5]), (10, 2, [4, 4, 2]), (8, 2, [4, 4]), (3, 2, [3]), (1, 2, [1])],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(num_rows: int, least: int, sizes: list[int]) -> None:
    batches = batches_of(torch.arange(num_rows), 4, least)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(num_rows))

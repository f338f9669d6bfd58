from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.parts import spec_of
from trainer.data.prepare import split_rows
from trainer.models import build_model, load_weights, weights_of
from trainer.sections.model import CnnModel, CnnOptions, LinearModel, LinearOptions, MlpModel, MlpOptions, Model
from trainer.sources import BUILTIN_SOURCES, check_fit, count_parameters

DIGITS = BUILTIN_SOURCES["digits"]


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("linear", 64 * 10 + 10),
        ("mlp", 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        ("cnn", (9 * 16 + 16) + (9 * 16 * 32 + 32) + (32 * 2 * 2 * 64 + 64) + (64 * 10 + 10)),
    ],
)
def test_shapes(name: str, num_parameters: int) -> None:
    model = build_model(spec_of(model=name).model, DIGITS, seed=0)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_regression_has_one_output() -> None:
    model = build_model(spec_of(source="diabetes").model, BUILTIN_SOURCES["diabetes"], seed=0)
    assert model(torch.zeros(3, 10)).shape == (3, 1)


def test_seed_decides_and_global_state_stays() -> None:
    options = spec_of(model="mlp").model
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = weights_of(build_model(options, DIGITS, seed=5))
    assert torch.rand(1) == expected
    again, other = (weights_of(build_model(options, DIGITS, seed=seed)) for seed in (5, 6))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["1.weight"] != other["1.weight"]).any()


def test_only_floating_point_tensors_travel() -> None:
    module = nn.BatchNorm1d(2)
    assert set(weights_of(module)) == {"weight", "bias", "running_mean", "running_var"}  # not num_batches_tracked


def test_load_is_the_inverse_of_weights_of() -> None:
    options = spec_of(model="cnn").model
    source, target = build_model(options, DIGITS, seed=0), build_model(options, DIGITS, seed=1)
    load_weights(target, weights_of(source))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_weights_that_do_not_fit() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="do not fit the model's \\['bias', 'weight'\\]"):
        load_weights(model, {"weight": np.zeros((1, 2), np.float32)})
    with pytest.raises(ValueError, match="'weight' has the shape \\(2, 1\\), and the model needs \\(1, 2\\)"):
        load_weights(model, {"weight": np.zeros((2, 1), np.float32), "bias": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    ("model", "source"),
    [
        (LinearModel(name="linear", options=LinearOptions(bias=False)), "digits"),
        (LinearModel(name="linear"), "diabetes"),
        (MlpModel(name="mlp", options=MlpOptions(hidden=(7, 5, 3))), "breast_cancer"),
        (MlpModel(name="mlp", options=MlpOptions(hidden=(7, 5), norm="batch")), "breast_cancer"),
        (CnnModel(name="cnn", options=CnnOptions(channels=(4, 6, 2), hidden=9)), "digits"),
        (CnnModel(name="cnn", options=CnnOptions(channels=(4, 6), hidden=9, norm="group")), "digits"),
    ],
)
def test_parameters_are_counted_as_they_are_built(model: Model, source: str) -> None:
    built = build_model(model, BUILTIN_SOURCES[source], 0)
    assert count_parameters(model, BUILTIN_SOURCES[source]) == sum(p.numel() for p in built.parameters())


def test_a_model_that_no_machine_holds_is_refused_before_it_is_built() -> None:
    spec = spec_of().model_copy(update={"model": MlpModel(name="mlp", options=MlpOptions(hidden=(65_536,) * 3))})
    (problem,) = check_fit(spec, BUILTIN_SOURCES["digits"])
    assert problem.loc == ("model", "options", "hidden")
    # 65 * 65,536 into the first layer, twice 65,537 * 65,536 between, 65,537 * 10 out.
    assert problem.message.startswith("This model would learn 8,594,980,874 numbers, and at most 1,000,000,000")


@pytest.mark.parametrize(("num_rows", "fits"), [(3, False), (4, True)])
def test_the_row_that_is_always_kept_for_testing_trains_nobody(num_rows: int, fits: bool) -> None:
    """A hundredth of 3 rows is rounded to none, and the split holds one out nevertheless."""
    spec = spec_of(data={"source": "digits", "test_fraction": 0.01}, federated={"clients": {"num": 3}})
    problems = check_fit(spec, BUILTIN_SOURCES["digits"].model_copy(update={"num_rows": num_rows}))
    train, _ = split_rows(num_rows, 0.01, spec.seed)
    assert (problems == []) == (len(train) >= 3) == fits

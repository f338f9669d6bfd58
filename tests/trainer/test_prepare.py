from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes

from tests.trainer.parts import builtin, spec_of
from trainer.data.files import describe_file
from trainer.data.prepare import load_rows, prepare_client, prepare_rank, scale_columns, split_rows
from trainer.data.source import Source, SourceError
from trainer.sources import BUILTIN_SOURCES, check_fit


@pytest.mark.parametrize("name", list(BUILTIN_SOURCES))
def test_builtin_sources_are_as_described(name: str) -> None:
    source = builtin(name)
    rows = load_rows(source)
    assert rows.x.shape == (source.description.num_rows, *source.description.shape)
    assert rows.x.dtype == np.float32
    if source.description.task == "classification":
        assert np.unique(rows.y).tolist() == list(range(source.description.num_outputs))
    else:
        assert rows.y.dtype == np.float32


def test_digits_lie_between_0_and_1() -> None:
    x = load_rows(builtin()).x
    assert (x.min(), x.max()) == (0, 1)


@given(st.integers(2, 500), st.floats(0.01, 0.9), st.integers(0, 2**31 - 1))
def test_split_is_disjoint_and_covers(num_rows: int, fraction: float, seed: int) -> None:
    train, test = split_rows(num_rows, fraction, seed)
    assert sorted([*train, *test]) == list(range(num_rows))
    assert len(test) == min(max(round(num_rows * fraction), 1), num_rows - 1)


def test_scaling_is_measured_on_training_rows() -> None:
    train = np.array([[0, 5], [2, 5]], np.float32)
    scaled, test = scale_columns(train, np.array([[4, 6]], np.float32))
    np.testing.assert_array_equal(scaled, np.array([[-1, 0], [1, 0]], np.float32), strict=True)
    np.testing.assert_array_equal(test, np.array([[3, 1]], np.float32), strict=True)  # the constant column is centred


def test_a_constant_that_rounds_is_constant() -> None:
    scaled, _ = scale_columns(np.full((1000, 1), 0.1, np.float32), np.zeros((1, 1), np.float32))
    assert np.abs(scaled).max() < 1e-6


def test_images_are_scaled_by_channel() -> None:
    images = np.random.default_rng(0).normal(3, 2, (50, 2, 4, 4)).astype(np.float32)
    images[:, 1] *= 10
    scaled, _ = scale_columns(images, images)
    np.testing.assert_allclose(scaled.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=(0, 2, 3)), 1, rtol=1e-6)
    assert abs(scaled[:, 0, 0, 0].mean()) > 1e-3  # not pixel by pixel


@pytest.mark.parametrize("scheme", ["iid", "shards", "dirichlet", "quantity"])
def test_clients_share_the_training_rows(scheme: str) -> None:
    spec = spec_of(data={"partition": {"scheme": scheme}})
    clients = [prepare_client(spec, builtin(), client, 3) for client in range(3)]
    whole = prepare_rank(spec_of("distributed"), builtin())
    together = torch.cat([client.train_x for client in clients])
    assert together.shape == whole.train_x.shape == (1438, 1, 8, 8)
    rows = [sorted(map(tuple, x.flatten(1).tolist())) for x in (together, whole.train_x)]
    assert rows[0] == rows[1]
    for client in clients:
        assert torch.equal(client.test_x, whole.test_x)
        assert torch.equal(client.test_y, whole.test_y)


def test_natural_partition_keeps_all_rows() -> None:
    spec = spec_of(data={"partition": {"scheme": "natural"}})
    assert len(prepare_client(spec, builtin(), 1, 2).train_y) == 1438


def test_targets_of_a_regression_are_scaled() -> None:
    data = prepare_rank(spec_of("distributed", source="diabetes"), builtin("diabetes"))
    assert float(data.train_y.mean()) == pytest.approx(0, abs=1e-6)
    assert float(data.train_y.std(correction=0)) == pytest.approx(1, abs=1e-6)
    raw = prepare_rank(spec_of("distributed", source="diabetes", data={"scaling": "none"}), builtin("diabetes"))
    assert 25 <= float(raw.train_y.min()) < float(raw.train_y.max()) <= 346


def test_a_file_on_the_node(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(10)))
    source = Source(description=describe_file("t", path, "y", "classification"), path=path)
    assert Source.model_validate_json(source.model_dump_json()) == source  # how it reaches the runner
    data = prepare_rank(spec_of("distributed", source="t"), source)
    assert (data.train_x.shape, data.test_x.shape, data.train_y.dtype) == ((8, 2), (2, 2), torch.int64)


def test_fewer_rows_than_clients(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,0\n2,1\n3,0\n")
    source = Source(description=describe_file("t", path, "y", "classification"), path=path)
    with pytest.raises(SourceError, match="'t' has 2 training rows left for 3 clients"):
        prepare_client(spec_of(source="t"), source, 0, 3)


def test_builtin_columns_are_the_data_sets_own() -> None:
    for name, load in (("breast_cancer", load_breast_cancer), ("diabetes", load_diabetes)):
        assert list(BUILTIN_SOURCES[name].columns) == list(load().feature_names)


@pytest.mark.parametrize("scaling", ["standard", "none"])
def test_clients_by_a_column(scaling: str) -> None:
    """One client has the women of the diabetes data, the other the men, and the column is still a feature."""
    partition = {"scheme": "column", "column": "sex"}
    spec = spec_of(source="diabetes", data={"partition": partition, "scaling": scaling})
    assert check_fit(spec, BUILTIN_SOURCES["diabetes"]) == []
    clients = [prepare_client(spec, builtin("diabetes"), client, 2) for client in range(2)]
    assert [client.train_x.shape[1] for client in clients] == [10, 10]
    assert [len(client.train_x[:, 1].unique()) for client in clients] == [1, 1]
    assert clients[0].train_x[0, 1] != clients[1].train_x[0, 1]
    assert sum(len(client.train_y) for client in clients) == 442 - 88
    with pytest.raises(SourceError, match="'diabetes' has 2 different values of 'sex' in its training rows"):
        prepare_client(spec, builtin("diabetes"), 0, 3)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("diabetes", "'diabetes' has no column 'site': choose one of age, sex, bmi, bp, s1, s2, s3, s4, s5, s6."),
        ("digits", "'digits' has no named columns to split by: choose another scheme."),
    ],
)
def test_a_column_that_is_not_there(source: str, sentence: str) -> None:
    spec = spec_of(source=source, data={"partition": {"scheme": "column", "column": "site"}})
    (problem,) = check_fit(spec, BUILTIN_SOURCES[source])
    assert problem.loc == ("data", "partition", "column")
    assert problem.message == sentence


def test_sizes_of_a_regression_may_be_skewed() -> None:
    spec = spec_of(source="diabetes", data={"partition": {"scheme": "quantity", "alpha": 0.1}})
    assert check_fit(spec, BUILTIN_SOURCES["diabetes"]) == []
    sizes = [len(prepare_client(spec, builtin("diabetes"), client, 4).train_y) for client in range(4)]
    assert sum(sizes) == 354
    assert max(sizes) > 354 / 4 * 1.5

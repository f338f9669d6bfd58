"""tools/fetch_openml.py, on data sets of OpenML that scikit-learn carries for its own tests, laid out as its cache has them.

Nothing is fetched: what is in the cache is read from it, and without a network that is all there is.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.openml import fetch, fill_cache
from trainer.agent.config import load_config
from trainer.data.files import describe_file, load_file


def test_numbers_and_a_node_that_declares_them(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", 61)
    done = fetch(61, tmp_path / "Iris flowers.parquet")
    assert done.returncode == 0, done.stderr
    (tmp_path / "node.toml").write_text(done.stdout)
    (source,) = load_config(tmp_path / "node.toml").sources
    assert (source.name, source.label, source.task, source.title) == ("iris-flowers", "class", "classification", "iris")
    schema = describe_file(source.name, source.path, source.label, source.task, title=source.title)
    assert (schema.num_rows, schema.shape) == (150, (4,))
    assert schema.columns == ("sepallength", "sepalwidth", "petallength", "petalwidth")
    assert schema.classes == ("Iris-setosa", "Iris-versicolor", "Iris-virginica")
    x, y = load_file(schema, source.path)
    np.testing.assert_allclose(x[0], [5.1, 3.5, 1.4, 0.2], rtol=1e-6)
    assert np.bincount(y).tolist() == [50, 50, 50]


def test_categories_become_columns_of_0_and_1(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", 3)
    path = tmp_path / "chess.parquet"
    assert fetch(3, path).returncode == 0
    schema = describe_file("chess", path, "class", "classification")
    # 36 categories: 34 of two values, a column each; katri and wtoeg of three.
    assert (schema.num_rows, schema.shape, schema.classes) == (3196, (40,), ("nowin", "won"))
    assert "bkblk=f" in schema.columns
    assert "bkblk=t" not in schema.columns
    x, y = load_file(schema, path)
    assert set(np.unique(x)) == {0, 1}
    three = [schema.columns.index(f"katri={value}") for value in "bnw"]
    np.testing.assert_array_equal(x[:, three].sum(axis=1), 1)
    assert np.bincount(y).tolist() == [1527, 1669]  # as the data set's own description counts them


def test_a_number_as_the_target(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", 561)
    done = fetch(561, tmp_path / "cpu.parquet")
    (source,) = tomllib.loads(done.stdout)["sources"]
    assert (source["task"], source["label"], source["title"]) == ("regression", "class", "cpu")
    schema = describe_file("cpu", tmp_path / "cpu.parquet", "class", "regression")
    assert schema.num_rows == 209
    assert load_file(schema, tmp_path / "cpu.parquet").y[:3].tolist() == [199, 253, 253]


def test_rows_with_gaps_are_left_out_and_counted(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", 1)
    done = fetch(1, tmp_path / "anneal.parquet")
    assert done.stdout.startswith("Left out: 11 rows with missing values.\n[[sources]]\n")


@pytest.mark.parametrize(
    ("number", "name", "sentence"),
    [
        (40945, "titanic.parquet", "Data set 40945 is no table of numbers and categories with one target: STRING"),
        (40589, "emotions.parquet", "Data set 40589 is no table of numbers and categories with one target: it has 6"),
        (61, "iris.csv", "the file's name must end in .parquet, and iris.csv does not"),
    ],
)
def test_what_is_no_table_is_said_in_a_sentence(tmp_path: Path, number: int, name: str, sentence: str) -> None:
    fill_cache(tmp_path / "cache", number)
    done = fetch(number, tmp_path / name)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / name).exists()

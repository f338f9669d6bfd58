"""A node's own files: what they look like from outside, and a sentence for each thing that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from trainer.data.files import describe_file, load_file
from trainer.data.source import SourceError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    path.write_text("age,ill,dose,outcome\n30,true,0.5,well\n40,false,1,dead\n50,true,2,well\n")
    return path


def test_csv_with_text_labels(table: Path) -> None:
    schema = describe_file("patients", table, "outcome", "classification")
    assert (schema.shape, schema.num_rows, schema.num_classes) == ((3,), 3, 2)
    assert schema.columns == ("age", "ill", "dose")
    assert schema.classes == ("dead", "well")  # sorted
    x, y = load_file(schema, table)
    np.testing.assert_array_equal(x, np.array([[30, 1, 0.5], [40, 0, 1], [50, 1, 2]], np.float32), strict=True)
    np.testing.assert_array_equal(y, np.array([1, 0, 1], np.int64), strict=True)


def test_csv_as_a_regression(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,dose\n1,0.5\n2,1\n")
    schema = describe_file("t", path, "dose", "regression")
    assert (schema.task, schema.num_classes, schema.num_outputs, schema.label) == ("regression", None, 1, "dose")
    np.testing.assert_array_equal(load_file(schema, path).y, np.array([0.5, 1], np.float32), strict=True)


def test_parquet_with_numbered_and_categorical_labels(tmp_path: Path) -> None:
    kind = pa.array(["b", "a", "b"]).dictionary_encode()
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"a": [1.5, 2, 3], "y": pa.array([0, 3, 1], pa.int8())}), path)
    schema = describe_file("t", path, "y", "classification")
    assert (schema.num_classes, schema.classes) == (4, ())  # numbers are taken as they are
    parquet.write_table(pa.table({"a": [1, 2, 3], "kind": kind}), path)
    assert describe_file("t", path, "kind", "classification").classes == ("a", "b")


def test_npz_of_images(tmp_path: Path) -> None:
    path = tmp_path / "scans.npz"
    np.savez(path, x=np.ones((4, 3, 8, 8), np.uint8), y=np.array(["cat", "dog", "cat", "cat"]))
    schema = describe_file("scans", path, "", "classification")
    assert (schema.shape, schema.num_classes, schema.columns, schema.label) == ((3, 8, 8), 2, (), "y")
    x, y = load_file(schema, path)
    assert x.dtype == np.float32
    assert y.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "label", "task", "sentence"),
    [
        ("a,y\n1,0\n2,1\n", "z", "classification", "no column 'z' for the label: choose one of a, y"),
        ("a,y\nred,0\nblue,1\n", "y", "classification", "Column 'a' of t.csv is not numeric \\('red'\\)"),
        ("a,y\n1,0\n2,\n3,1\n", "y", "classification", "Column 'y' of t.csv is empty or NaN in 1 rows"),
        ("a,y\n1,0.5\n2,nan\n", "y", "regression", "Column 'y' of t.csv is empty or NaN in 1 rows"),
        ("a,y\n,0\n,1\n3,1\n", "y", "classification", "Column 'a' of t.csv is empty or NaN in 2 rows"),
        ("a,y\n1,0\n1e39,1\n", "y", "classification", "Column 'a' of t.csv holds NaN, infinite or too large"),
        ("a,y\n1,0\n2,1e300\n", "y", "regression", "The label 'y' of t.csv holds NaN, infinite or too large"),
        ("a,y\n1,0.5\n2,1\n", "y", "classification", 'holds 0.5: classes are whole numbers.*task = "regression"'),
        ("a,y\n1,-1\n2,1\n", "y", "classification", "holds -1: classes"),
        (
            "a,y\n1,up\n2,down\n",
            "y",
            "regression",
            'is text, and a regression needs numbers: set task = "classification"',
        ),
        ("a,y\n1,up\n2,up\n", "y", "classification", "has 1 different values"),
        ("a,y\n1,0\n", "y", "classification", "has 1 rows"),
        ("y\n1\n0\n", "y", "classification", "no column besides the label"),
        ("a,a,y\n1,1,1\n0,0,0\n", "y", "classification", "the column 'a' twice"),
        ("a,y\n2020-01-01,1\n2020-01-02,0\n", "y", "classification", "Column 'a' of t.csv has the type date32"),
        ("a,y\n1\n1,2,3\n", "y", "classification", "t.csv cannot be read"),
        ("", "y", "classification", "t.csv cannot be read"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, label: str, task, sentence: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=sentence):
        describe_file("t", path, label, task)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.ones((2, 2))}, "needs the arrays x"),
        ({"x": np.ones(2), "y": np.ones(2)}, "array x of t.npz has the shape \\(2,\\)"),
        ({"x": np.ones((2, 2)), "y": np.ones((2, 1))}, "array y of t.npz has the shape \\(2, 1\\), and x has 2 rows"),
        ({"x": np.array([["a"], ["b"]]), "y": np.ones(2)}, "x needs numbers"),
        ({"x": np.ones((2, 1)), "y": np.array([0, np.nan])}, "array y of t.npz holds NaN"),
        ({"x": np.array([[np.inf], [0]]), "y": np.ones(2)}, "array x of t.npz holds NaN"),
        ({"x": np.array([[{}], [{}]], dtype=object), "y": np.ones(2)}, "t.npz cannot be read: .*allow_pickle"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    np.savez(tmp_path / "t.npz", allow_pickle=True, **arrays)
    with pytest.raises(SourceError, match=sentence):
        describe_file("t", tmp_path / "t.npz", "", "regression")


@pytest.mark.parametrize("name", ["t.npz", "t.parquet"])
def test_not_what_the_ending_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00 something else")
    with pytest.raises(SourceError, match=f"{name} cannot be read"):
        describe_file("t", tmp_path / name, "y", "classification")


def test_unknown_format_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"t\.xlsx is of no known format: use one of \.csv, \.parquet, \.npz"):
        describe_file("t", tmp_path / "t.xlsx", "y", "classification")
    with pytest.raises(SourceError, match="does not exist"):
        describe_file("t", tmp_path / "t.csv", "y", "classification")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        describe_file("t", tmp_path / "folder.parquet", "y", "classification")


@pytest.mark.parametrize(
    "now",
    [
        "age,outcome\n30,well\n40,dead\n",
        # As many columns, in another order: a partition by 'age' would split by 'dose'.
        "dose,ill,age,outcome\n0.5,true,30,well\n1,false,40,dead\n",
    ],
)
def test_a_file_that_changed_since(table: Path, now: str) -> None:
    schema = describe_file("patients", table, "outcome", "classification")
    table.write_text(now)
    with pytest.raises(SourceError, match="The file of 'patients' has changed or gone since the agent started"):
        load_file(schema, table)


@pytest.mark.parametrize("now", ["age,ill,dose,outcome\nJohn Smith,true,0.5,well\n40,false,1,dead\n", None])
def test_what_a_job_says_of_a_changed_file_names_no_file_and_no_value(tmp_path: Path, now: str | None) -> None:
    table = tmp_path / "ward-file.csv"
    table.write_text("age,ill,dose,outcome\n30,true,0.5,well\n40,false,1,dead\n")
    schema = describe_file("patients", table, "outcome", "classification")
    assert "ward-file" not in schema.model_dump_json()
    assert schema.title == "patients"
    table.unlink()
    if now is not None:
        table.write_text(now)
    with pytest.raises(SourceError) as caught:
        load_file(schema, table)
    assert "ward-file" not in str(caught.value)
    assert "John" not in str(caught.value)

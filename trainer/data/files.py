"""A node's own files: CSV, Parquet and NPZ. Torch-free.

Every column but the label is a feature and must be numeric. Labels of a classification are whole numbers from 0, taken
as they are, or text, numbered in sorted order. Nothing is guessed or filled in: what does not fit is said in a sentence.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv, parquet

from trainer.data.source import Rows, SourceError, Task
from trainer.sources import SourceSchema

MOST_CLASSES = 10_000
SHAPED_BY = {"shape", "columns", "num_classes", "classes"}
"""What of a description a job's model and partition rest on; rows may come and go."""


class _Raw(NamedTuple):
    """A file as read: numeric features, and a label column of any kind."""

    x: npt.NDArray[Any]
    label: npt.NDArray[Any]
    """(rows,): integers, floats, or text as str_ or object."""
    label_name: str
    columns: tuple[str, ...]


def describe_file(name: str, path: Path, label: str, task: Task, *, title: str = "") -> SourceSchema:
    """Return what the server may know of a file: schema and counts, and the title that its owner gave it.

    `label` is the target's column; an NPZ file has its arrays `x` and `y` instead. Raises SourceError, for the owner alone: it
    names the file, and may quote a value.
    """
    schema, _ = _read(name, path, label, task)
    return schema.model_copy(update={"title": title or name})


def load_file(description: SourceSchema, path: Path) -> Rows:
    """Return the rows of a file that was described before. Raises SourceError, also where it has changed its shape since.

    This one goes to the server, and so says nothing of the file but the source's name.
    """
    changed = (
        f"The file of '{description.name}' has changed or gone since the agent started: "
        "the owner of the node restarts the agent, whose log says what is wrong with it."
    )
    try:
        now, rows = _read(description.name, path, description.label, description.task)
    except SourceError:
        raise SourceError(changed) from None
    if now.model_dump(include=SHAPED_BY) != description.model_dump(include=SHAPED_BY):
        raise SourceError(changed)
    return rows


def _read(name: str, path: Path, label: str, task: Task) -> tuple[SourceSchema, Rows]:
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path.name} is of no known format: use one of {', '.join(FORMATS)}.")
    try:
        raw = reader(path, label)
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise SourceError(f"{path.name} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if len(raw.x) < 2:
        raise SourceError(f"{path.name} has {len(raw.x)} rows: training and testing need at least one each.")
    y, classes = _classes(path, raw) if task == "classification" else (_numbers(path, raw), ())
    schema = SourceSchema(
        name=name,
        task=task,
        shape=raw.x.shape[1:],
        num_rows=len(raw.x),
        num_classes=max(2, len(classes) or int(y.max()) + 1) if task == "classification" else None,
        columns=raw.columns,
        label=raw.label_name,
        classes=classes,
    )
    return schema, Rows(raw.x, y)


def _classes(path: Path, raw: _Raw) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return class numbers, int64, and the classes' names where the labels are text."""
    where = f"The label '{raw.label_name}' of {path.name}"
    if raw.label.dtype.kind in "OUS":
        values, y = np.unique(raw.label.astype(str), return_inverse=True)
        if not 2 <= len(values) <= MOST_CLASSES:
            raise SourceError(
                f"{where} has {len(values)} different values: a classification needs 2 to {MOST_CLASSES}."
            )
        return y.astype(np.int64), tuple(str(value) for value in values)
    numbers = raw.label.astype(np.float64)
    wrong = (numbers < 0) | (numbers >= MOST_CLASSES) | (numbers != np.floor(numbers))
    if wrong.any():
        raise SourceError(
            f"{where} holds {numbers[wrong][0]:g}: classes are whole numbers from 0 to {MOST_CLASSES - 1}, or text. "
            f'To predict a number, set task = "regression".'
        )
    return numbers.astype(np.int64), ()


def _numbers(path: Path, raw: _Raw) -> npt.NDArray[Any]:
    """Return the targets of a regression, float32."""
    if raw.label.dtype.kind in "OUS":
        raise SourceError(
            f"The label '{raw.label_name}' of {path.name} is text, and a regression needs numbers: "
            f'set task = "classification", or name another column.'
        )
    return _float32(path, f"The label '{raw.label_name}'", raw.label)


def _float32(path: Path, what: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values as float32. Raises SourceError where one is NaN, infinite or too large for it."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise SourceError(
            f"{what} of {path.name} holds NaN, infinite or too large numbers: fill them in, or drop the rows."
        )
    return narrow


def _read_csv(path: Path, label: str) -> _Raw:
    return _from_table(path, csv.read_csv(path), label)


def _read_parquet(path: Path, label: str) -> _Raw:
    # As a file of its own: read_table would take columns from the names of the folders around it.
    return _from_table(path, parquet.ParquetFile(path).read(), label)


def _from_table(path: Path, table: pa.Table, label: str) -> _Raw:
    names = table.column_names
    if label not in names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise SourceError(f"{path.name} has no column '{label}' for the label: choose one of {shown}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"{path.name} has the column '{twice}' twice: rename one of them.")
    columns = [name for name in names if name != label]
    if not columns:
        raise SourceError(f"{path.name} has no column besides the label '{label}'.")
    x = np.empty((table.num_rows, len(columns)), dtype=np.float32)
    for index, name in enumerate(columns):
        values = _column(path, name, table[name])
        if values.dtype.kind in "OUS":
            raise SourceError(
                f"Column '{name}' of {path.name} is not numeric ('{values[0]}'): encode it, or leave it out."
            )
        x[:, index] = _float32(path, f"Column '{name}'", values)
    return _Raw(x, _column(path, label, table[label]), label, tuple(columns))


def _column(path: Path, name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return one column without gaps: integers, floats, or text as objects."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    ):
        raise SourceError(f"Column '{name}' of {path.name} has the type {kind}: use numbers or text.")
    num_empty = column.null_count
    values: npt.NDArray[Any] = column.to_numpy()
    if not num_empty and values.dtype.kind == "f":
        num_empty = int(np.isnan(values).sum())
    if num_empty:
        raise SourceError(
            f"Column '{name}' of {path.name} is empty or NaN in {num_empty} rows: fill them in, or drop the rows."
        )
    return values


def _read_npz(path: Path, label: str) -> _Raw:
    # allow_pickle=False: a pickled array would run its author's code. `label` has no meaning here: the target is `y`.
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile) or not {"x", "y"} <= set(file.files):
            raise SourceError(f"{path.name} needs the arrays x (examples) and y (targets).")
        x, y = file["x"], file["y"]
    if not 2 <= x.ndim <= 5 or 0 in x.shape[1:]:
        raise SourceError(f"The array x of {path.name} has the shape {x.shape}: it needs rows, then 1 to 4 dimensions.")
    if y.shape != x.shape[:1]:
        raise SourceError(f"The array y of {path.name} has the shape {y.shape}, and x has {len(x)} rows.")
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biufU":
        raise SourceError(f"{path.name} holds {x.dtype} in x and {y.dtype} in y: x needs numbers, y numbers or text.")
    x = _float32(path, "The array x", x)
    if y.dtype.kind == "f":
        _float32(path, "The array y", y)
    return _Raw(x, y, "y", ())


FORMATS: dict[str, Callable[[Path, str], _Raw]] = {".csv": _read_csv, ".parquet": _read_parquet, ".npz": _read_npz}

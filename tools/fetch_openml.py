"""Write a data set of OpenML as a Parquet file that a node can declare as a data source.

    .venv/bin/python tools/fetch_openml.py 1510 /data/wdbc.parquet

The number is that of the data set's address, https://www.openml.org/d/1510. It is fetched with scikit-learn's
`fetch_openml`, which keeps what it got: where its cache (--cache) holds the data set, no network is needed.

Names stay: columns of numbers as they are, categories as a column of 0 and 1 for each value (one for two values), the
target as it is. Rows with a missing value are left out, and counted. At the end it prints the lines for node.toml.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet
from sklearn.datasets import fetch_openml

Columns = dict[str, npt.NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a data set of OpenML as a Parquet file for a node.")
    parser.add_argument("id", type=int, help="the data set's number at openml.org")
    parser.add_argument("file", type=Path, help="the file to write, such as wdbc.parquet")
    parser.add_argument("--cache", type=Path, help="folder of scikit-learn's downloads (default: its own)")
    options = parser.parse_args()
    if options.file.suffix != ".parquet":
        parser.error(f"the file's name must end in .parquet, and {options.file.name} does not")
    try:
        # Without pandas: arrays, in which a category is the number of its value.
        found = fetch_openml(data_id=options.id, data_home=options.cache, as_frame=False, parser="liac-arff")
        label, columns, num_dropped = to_columns(found)
    except OSError as error:
        said = f"Data set {options.id} cannot be fetched: {error}. Try again, or name the cache that holds it."
        raise SystemExit(said) from None
    except ValueError as error:
        said = f"Data set {options.id} is no table of numbers and categories with one target: {error}"
        raise SystemExit(said) from None
    parquet.write_table(pa.table(columns), options.file)
    if num_dropped:
        print(f"Left out: {num_dropped:,} rows with missing values.")
    print(describe(found.details["name"], options.file, label, columns[label]))


def to_columns(found: Any) -> tuple[str, Columns, int]:
    """Return the target's name, all columns by name with the target last, and how many rows were left out.

    `found` is what fetch_openml returns. Raises ValueError where it has no table or not one target.
    """
    if len(found.target_names) != 1:
        raise ValueError(f"it has {len(found.target_names)} targets, and a data source has one.")
    if not isinstance(found.data, np.ndarray):
        raise ValueError("it is sparse, and a data source is a table.")
    label, target = found.target_names[0], found.target
    data = found.data.astype(np.float64)
    # Text that is missing comes as None.
    complete = ~np.isnan(data).any(axis=1) & np.array([value is not None and value == value for value in target])
    data, target = data[complete], target[complete]
    columns: Columns = {}
    for name, values in zip(found.feature_names, data.T, strict=True):
        columns |= _one_hot(name, values, found.categories[name]) if name in found.categories else {name: values}
    columns[label] = target.astype(str) if target.dtype.kind == "O" else target
    return label, columns, int((~complete).sum())


def _one_hot(name: str, numbers: npt.NDArray[Any], categories: list[Any]) -> Columns:
    """A column of 0 and 1 for each category. Of two categories the second says all."""
    first = 1 if len(categories) == 2 else 0
    return {
        f"{name}={category}": (numbers == number).astype(np.uint8)
        for number, category in enumerate(categories)
        if number >= first
    }


def describe(title: str, path: Path, label: str, target: npt.NDArray[Any]) -> str:
    """Return the lines that declare the file in node.toml."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", path.stem.lower()).strip("-_.") or "openml"
    task = "classification" if target.dtype.kind == "U" else "regression"
    fields = {"name": name, "path": str(path.resolve()), "label": label, "task": task, "title": title}
    # What TOML escapes in a string, JSON escapes alike.
    return "\n".join(["[[sources]]", *(f"{field} = {json.dumps(value)}" for field, value in fields.items())])


if __name__ == "__main__":
    main()

"""From a source to the tensors of one client or rank: load, split, scale, share out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.builtin import SOURCES
from trainer.data.files import load_file
from trainer.data.partition import CannotDeal, Positions, partition_rows
from trainer.data.source import Rows, Source, SourceError
from trainer.sections.data import Data
from trainer.sources import count_test_rows
from trainer.spec import JobSpec

BLOCK_ROWS = 1024
"""Rows that are in float64 at a time while columns are scaled."""


class Dataset(NamedTuple):
    """Training and test rows. x: float32 (rows, *shape); y: int64 classes or float32 targets (rows,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: torch.device) -> Dataset:
        return Dataset(*(tensor.to(device) for tensor in self))


def load_rows(source: Source) -> Rows:
    """Return all rows of a source. Raises SourceError."""
    if source.path is None:
        return SOURCES[source.description.name]()
    return load_file(source.description, source.path)


def split_rows(num_rows: int, test_fraction: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the positions of the training and of the test rows, at least one each. The seed alone decides."""
    order = np.random.default_rng(seed).permutation(num_rows)
    num_test = count_test_rows(num_rows, test_fraction)
    return np.sort(order[num_test:]), np.sort(order[:num_test])


def scale_columns(train: npt.NDArray[Any], test: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Bring columns, or the channels of images, to mean 0 and deviation 1 as measured on the training rows.

    Both are (rows, *shape) or (rows,). A column that is constant in training is only centred.
    """
    # Single pixels are often constant on few rows and say nothing alone, so images are scaled by channel.
    axes = (0,) if train.ndim <= 2 else (0, *range(2, train.ndim))
    mean = train.mean(axis=axes, keepdims=True, dtype=np.float64)
    # By blocks, as below: a data set in float64 would be the largest thing that the process ever holds.
    squares = sum(((block - mean) ** 2).sum(axis=axes, keepdims=True) for block in _blocks(train))
    deviation = np.sqrt(squares / (train.size // mean.size))
    # Rounding leaves a constant column a deviation a little above 0.
    deviation = np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)
    return _scaled(train, mean, deviation), _scaled(test, mean, deviation)


def _scaled(rows: npt.NDArray[Any], mean: npt.NDArray[Any], deviation: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    scaled = np.empty(rows.shape, np.float32)
    for block, target in zip(_blocks(rows), _blocks(scaled), strict=True):
        target[:] = (block - mean) / deviation
    return scaled


def _blocks(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS))


def prepare_client(spec: JobSpec, source: Source, client: int, num_clients: int) -> Dataset:
    """Return the rows that one client of a federated job trains on, and its test rows. Raises SourceError.

    Clients that share one source are scaled alike and test on the same rows; with the natural partition all of it is
    the node's own.
    """
    rows = load_rows(source)
    train, test = split_rows(len(rows.y), spec.data.test_fraction, spec.seed)
    if spec.data.partition.scheme == "natural":
        return _dataset(spec.data, source, _cut(rows, train, test))
    part = _deal(spec, source, rows, train, num_clients)[client]
    whole = _dataset(spec.data, source, _cut(rows, train, test))
    return whole._replace(train_x=whole.train_x[part], train_y=whole.train_y[part])


def prepare_clients(spec: JobSpec, source: Source, num_clients: int) -> tuple[Dataset, list[Positions]]:
    """Return all rows, and which of the training rows each client has: what `prepare_client` gives them one by one.

    Raises SourceError.
    """
    if spec.data.partition.scheme == "natural":
        raise SourceError(
            "Simulated clients share one source, and the natural partition gives each node its own: choose another data.partition."
        )
    rows = load_rows(source)
    train, test = split_rows(len(rows.y), spec.data.test_fraction, spec.seed)
    parts = _deal(spec, source, rows, train, num_clients)
    cut = _cut(rows, train, test)
    del rows  # scaling takes the data set once more, and its owner reserved memory for little else
    return _dataset(spec.data, source, cut), parts


def prepare_rank(spec: JobSpec, source: Source) -> Dataset:
    """Return all rows: ranks of a distributed job share them out anew in each epoch. Raises SourceError."""
    rows = load_rows(source)
    train, test = split_rows(len(rows.y), spec.data.test_fraction, spec.seed)
    return _dataset(spec.data, source, _cut(rows, train, test))


def _deal(spec: JobSpec, source: Source, rows: Rows, train: Positions, num_clients: int) -> list[Positions]:
    """Return each client's rows, as positions among `train`, the positions of the training rows."""
    name, partition = source.description.name, spec.data.partition
    if len(train) < num_clients:  # check_fit knew the file as it was when the agent described it
        raise SourceError(
            f"'{name}' has {len(train)} training rows left for {num_clients} clients: each needs at least one."
        )
    keys = rows.y[train]
    if partition.scheme == "column":
        # The column as it is in the source: scaling to float32 might make two values one.
        keys = rows.x[train, source.description.columns.index(partition.column)]
    try:
        return partition_rows(partition, keys, num_clients, spec.seed)
    except CannotDeal as error:
        raise SourceError(f"'{name}' {error}") from error


def _cut(rows: Rows, train: Positions, test: Positions) -> tuple[Rows, Rows]:
    """Return copies of the training and of the test rows."""
    return Rows(rows.x[train], rows.y[train]), Rows(rows.x[test], rows.y[test])


def _dataset(data: Data, source: Source, cut: tuple[Rows, Rows]) -> Dataset:
    """Return the training and the test rows, scaled as the spec says."""
    (train_x, train_y), (test_x, test_y) = cut
    if data.scaling == "standard":
        train_x, test_x = scale_columns(train_x, test_x)
        if source.description.task == "regression":
            train_y, test_y = scale_columns(train_y, test_y)
    return Dataset(*(torch.from_numpy(part) for part in (train_x, train_y, test_x, test_y)))

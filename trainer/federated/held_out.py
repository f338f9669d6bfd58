"""The server's own test of a federated model: rows that no client trains on, loaded once."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from trainer.data.prepare import load_rows, prepare_rank, scale_columns
from trainer.data.source import Source
from trainer.losses import build_objective
from trainer.models import build_model, load_weights
from trainer.spec import JobSpec
from trainer.training import evaluate, prefixed
from trainer.weights import Weights


def held_out_rows(spec: JobSpec, source: Source) -> tuple[Tensor, Tensor]:
    """Return the rows that the server measures on: x float32 (rows, *shape), y int64 classes or float32 targets (rows,).

    Of a built-in data set those are the test rows of the spec's split, scaled as the clients' are. A file of the server's own is
    taken whole, and scaled by itself, as with the natural partition each client's is. Raises SourceError.
    """
    if source.path is None:
        data = prepare_rank(spec, source)
        return data.test_x, data.test_y
    x, y = load_rows(source)
    if spec.data.scaling == "standard":
        x = scale_columns(x, x)[1]
        if source.description.task == "regression":
            y = scale_columns(y, y)[1]
    return torch.from_numpy(x), torch.from_numpy(y)


class HeldOut:
    """The server's rows and a model to put weights into. Threads may share it: they measure one after the other."""

    def __init__(self, spec: JobSpec, source: Source) -> None:
        """Raises SourceError where the data cannot be used."""
        self._x, self._y = held_out_rows(spec, source)
        self._model = build_model(spec.model, source.description, spec.seed)
        self._objective = build_objective(spec.training.loss, source.description.task)
        self._precision = spec.training.precision
        self._lock = threading.Lock()

    def measure(self, weights: Weights) -> dict[str, float]:
        """Return `server/loss`, and `server/accuracy` or `server/r2`, of `weights`. Raises ValueError where they do not fit the model."""
        with self._lock:
            load_weights(self._model, weights)
            measured = evaluate(self._model, self._objective, self._x, self._y, precision=self._precision)
        return prefixed("server", measured)

"""A data source on this machine: what it looks like, and where it lies. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from trainer.sources import SourceSchema

Task = Literal["classification", "regression"]


class SourceError(ValueError):
    """A data source that cannot be used. The text is a sentence for its owner: it names the file or column."""


class Source(BaseModel):
    """A source that can be loaded here. It travels as JSON from the agent to its runners, never to the server."""

    model_config = ConfigDict(frozen=True)

    description: SourceSchema
    path: Path | None = None
    """The node's own file; None for a built-in set."""


class Rows(NamedTuple):
    """All rows of a source, in memory."""

    x: npt.NDArray[Any]
    """float32, (rows, *shape)."""
    y: npt.NDArray[Any]
    """int64 class numbers or float32 targets, (rows,)."""

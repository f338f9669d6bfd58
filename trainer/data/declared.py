"""A data source as the owner of a machine declares it in a TOML file: a node in its node.toml, the server in its data.toml. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.data.source import Task
from trainer.sections.data import SourceName
from trainer.sources import Line


class DeclaredSource(BaseModel):
    """One [[sources]] table: a file that jobs may use, by its name only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SourceName
    path: Path
    """CSV, Parquet or NPZ, by its ending. Relative to the folder of the TOML file."""
    label: str = ""
    """The target column. Not needed for NPZ."""
    task: Task
    title: Line = ""
    """What people read beside the name. Default: the name."""

"""node.toml: what the owner of this machine lends and shows. The server never sees the file, and cannot overrule it."""

from __future__ import annotations

import ipaddress
import logging
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trainer.agent.home import AgentError
from trainer.data.declared import DeclaredSource
from trainer.data.files import describe_file
from trainer.data.source import Source, SourceError
from trainer.sections.data import SourceName
from trainer.sources import BUILTIN_SOURCES, SourceSchema

logger = logging.getLogger(__name__)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"'{text}' is not an IP address of this machine, such as 10.0.0.5") from None


class Budget(BaseModel):
    """One [[budgets]] table: what all jobs together may learn of the single rows of a source."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: SourceName
    """A declared source, or a built-in data set."""
    max_epsilon: float = Field(gt=0)
    """The most that may be spent, by the ledger in the node's home."""
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """The probability with which the guarantee may fail. Below 1 / rows of the source."""
    share_metrics: bool = False
    """Let clients tell metrics, figures and label counts, which carry no noise and are in no account."""


class NodeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int | None = Field(default=None, ge=1, le=4096)
    """How many clients or ranks run here at a time. Default: one for each GPU, else one for each CPU core, at least two."""
    address: Annotated[str, AfterValidator(_address)] | None = None
    """IP address at which other nodes reach this one. Default: the one that this machine uses towards the server."""
    shared_blob_dirs: tuple[Path, ...] = ()
    """Folders of the server's blobs that this machine can read itself; what lies there is mapped, not copied."""
    share_label_counts: bool = False
    """Tell the server how many training rows of each class a client has. Of the built-in data sets it is told always."""
    require: tuple[Literal["secure_aggregation", "local_privacy"], ...] = ()
    """What a job must have, whatever its source: the server's word for a job's protection is not enough for everyone."""
    sources: tuple[DeclaredSource, ...] = ()
    budgets: tuple[Budget, ...] = ()
    """A source with a budget takes only jobs that bound what they take: with local differential privacy."""


def load_config(file: Path) -> NodeConfig:
    """Read node.toml; a missing file means the defaults. Raises AgentError naming the line or the field."""
    try:
        raw = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return NodeConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"{file} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise AgentError(f"{file} is not valid TOML: {error}.") from None
    try:
        config = NodeConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise AgentError(f"{file}: the field '{field}' is wrong: {first['msg']}.") from None
    names = [source.name for source in config.sources]
    for name in names:
        if names.count(name) > 1:
            raise AgentError(f"{file}: two sources are called '{name}': give each a name of its own.")
        if name in BUILTIN_SOURCES:
            raise AgentError(f"{file}: '{name}' is a built-in data set: give the source another name.")
    budgeted = [budget.source for budget in config.budgets]
    for name in budgeted:
        if budgeted.count(name) > 1:
            raise AgentError(f"{file}: two budgets are for '{name}': leave one of them.")
        if name not in names and name not in BUILTIN_SOURCES:
            raise AgentError(f"{file}: a budget is for '{name}', which is no source of this node: correct its name.")
    sources = tuple(s.model_copy(update={"path": (file.parent / s.path).resolve()}) for s in config.sources)
    return config.model_copy(update={"sources": sources})


class Catalogue:
    """The data sources that jobs may name on this node. A path that comes from the server is never opened."""

    def __init__(self, config: NodeConfig) -> None:
        """Look at each declared file once. One that cannot be used is left out, and the log says why.

        Raises AgentError where a budget's delta is too large for the rows of its source.
        """
        self._sources = {name: Source(description=schema) for name, schema in BUILTIN_SOURCES.items()}
        self.declared: list[SourceSchema] = []
        self._share_label_counts = config.share_label_counts
        self.require = config.require
        self._keep_metrics = {budget.source for budget in config.budgets if not budget.share_metrics}
        for source in config.sources:
            try:
                schema = describe_file(source.name, source.path, source.label, source.task, title=source.title)
            except SourceError as error:
                logger.error("The data source '%s' is left out: %s", source.name, error)
                continue
            self._sources[source.name] = Source(description=schema, path=source.path)
            self.declared.append(schema)
        for budget in config.budgets:
            known = self._sources.get(budget.source)
            if known and budget.delta * known.description.num_rows >= 1:
                raise AgentError(
                    f"node.toml: the budget for '{budget.source}' has delta = {budget.delta:g}, and the source has "
                    f"{known.description.num_rows:,} rows: a guarantee that may fail for one of them is none. Set delta below "
                    f"{1 / known.description.num_rows:.2g}."
                )

    def find(self, name: str) -> Source | None:
        return self._sources.get(name)

    def shares_label_counts(self, source: Source) -> bool:
        """Whether the server may know how many rows of each class a client of this source has."""
        return self.shares_metrics(source) and (self._share_label_counts or source.path is None)

    def shares_metrics(self, source: Source) -> bool:
        """Whether the server may see what clients measure on this source: a budget does not bound what that tells."""
        return source.description.name not in self._keep_metrics

    @property
    def names(self) -> list[str]:
        return sorted(self._sources)


def threads_per_runner(slots: int) -> int:
    """Return the CPU threads that one runner may use, so that all slots together fit the machine."""
    return max(1, len(os.sched_getaffinity(0)) // slots)

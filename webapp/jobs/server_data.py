"""Data sources of the server itself, on which it measures the new weights of federated jobs. Torch-free.

Built-in data sets it has like any node. An administrator declares others in a TOML file (`TRAINMASTER_DATA`) of [[sources]]
tables as in a node.toml; every team may name them, and sees of them what it sees of a node's: schema and counts.
"""

from __future__ import annotations

import logging
import time
import tomllib
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.data.declared import DeclaredSource
from trainer.data.source import Source, SourceError
from trainer.federated.early_stop import is_evaluated
from trainer.protocol import LogLine, Logs
from trainer.sources import BUILTIN_SOURCES, SourceSchema, SpecProblem
from trainer.spec import JobSpec
from webapp.jobs.models import Round
from webapp.jobs.rounds import federated_of
from webapp.telemetry.series import SERVER
from webapp.telemetry.services import record_logs

logger = logging.getLogger(__name__)


class _DataFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[DeclaredSource, ...] = ()


def declared_sources() -> dict[str, Source]:
    """The sources of the server's own file, by name. One that cannot be used is left out, and the server's log says why."""
    file = Path(settings.DATA_FILE)
    return {
        declared.name: source
        for declared in _read_file(file, _stamp(file))
        if (source := _describe(declared, _stamp(declared.path))) is not None
    }


def find_source(name: str) -> Source | None:
    builtin = BUILTIN_SOURCES.get(name)
    return Source(description=builtin) if builtin else declared_sources().get(name)


def sources_for(data_source: str) -> list[SourceSchema]:
    """What a job on `data_source` may be measured on: that source itself where it is built in, then the declared ones."""
    builtin = [BUILTIN_SOURCES[data_source]] if data_source in BUILTIN_SOURCES else []
    return builtin + [source.description for source in declared_sources().values()]


def check_server_data(spec: JobSpec, source: SourceSchema) -> list[SpecProblem]:
    """Why the server cannot measure the job's model on the data that the spec names. `source` is the clients' data source."""
    name = spec.federated.server_data if spec.federated else None
    if name is None:
        return []
    found = find_source(name)
    if found is None:
        known = ", ".join(f"'{schema.name}'" for schema in sources_for(source.name)) or "none"
        sentence = f"The server has no data source '{name}'. For this job there are: {known}. An administrator declares others in its data.toml."
    elif found.path is None and name != source.name:
        sentence = f"The clients train on '{source.name}', and '{name}' is another built-in data set: choose '{source.name}' here, or leave it empty."
    else:
        sentence = _why_other(found.description, source)
    return [SpecProblem(loc=("federated", "server_data"), message=sentence)] if sentence else []


def measure_round(round_: Round, spec: JobSpec, *, weights: str) -> dict[str, float]:
    """Return server/loss and its like of the weights that came of a round; nothing where the round is not evaluated.

    Where the data is gone by now, the job's log says so, and the job goes on. Needs `round_.attempt.job` loaded.
    """
    federated = federated_of(spec)
    if federated.server_data is None:
        return {}
    if not is_evaluated(federated, round_.number, round_.attempt.job.progress_total):
        return {}
    from webapp.jobs import evaluation  # torch

    try:
        source = find_source(federated.server_data)
        if source is None:
            raise SourceError(f"The server does not declare the data source '{federated.server_data}' any more.")
        return evaluation.measure_weights(
            spec, source, weights=weights, stamp=_stamp(source.path) if source.path else 0
        )
    except (OSError, ValueError, RuntimeError) as error:  # torch says most things by RuntimeError
        logger.warning("%s was not measured: %s", round_, error)
        text = f"The weights of round {round_.number} were not measured on the server's data: {error}"
        line = LogLine(time_ms=time.time_ns() // 1_000_000, level="warning", text=text[:8192])
        record_logs(entries=[Logs(attempt_id=round_.attempt_id, source=SERVER, lines=[line])])
        return {}


def _why_other(own: SourceSchema, clients: SourceSchema) -> str:
    """Why one model cannot be for both sources; empty where it can."""
    if (own.task, own.shape, own.num_outputs) != (clients.task, clients.shape, clients.num_outputs):
        return (
            f"'{own.name}' is a {own.task} of shape {list(own.shape)} with {own.num_outputs} outputs, and '{clients.name}' a "
            f"{clients.task} of shape {list(clients.shape)} with {clients.num_outputs}: choose a source that is like the clients'."
        )
    if own.classes != clients.classes:
        return (
            f"The classes of '{own.name}' are not those of '{clients.name}': choose a source that is like the clients'."
        )
    if own.columns != clients.columns:
        return f"The columns of '{own.name}' are not those of '{clients.name}', in their order: choose a source that is like the clients'."
    return ""


def _stamp(path: Path) -> int:
    """What changes when the file does; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _read_file(file: Path, stamp: int) -> tuple[DeclaredSource, ...]:
    if not stamp:
        return ()
    try:
        declared = _DataFile.model_validate(tomllib.loads(file.read_text())).sources
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        logger.error("The server's data sources are left out: %s cannot be used: %s", file, error)
        return ()
    found: dict[str, DeclaredSource] = {}
    for source in declared:
        if source.name in found or source.name in BUILTIN_SOURCES:
            logger.error("%s: the name '%s' is taken already: give the source another one.", file, source.name)
            continue
        found[source.name] = source.model_copy(update={"path": (file.parent / source.path).resolve()})
    return tuple(found.values())


@lru_cache(maxsize=64)
def _describe(declared: DeclaredSource, stamp: int) -> Source | None:
    from trainer.data.files import describe_file  # pyarrow: only servers with data of their own pay for it

    try:
        schema = describe_file(declared.name, declared.path, declared.label, declared.task, title=declared.title)
    except SourceError as error:
        logger.error("The server's data source '%s' is left out: %s", declared.name, error)
        return None
    return Source(description=schema, path=declared.path)

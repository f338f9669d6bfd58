"""What a data source looks like from outside: schema and counts, never rows. Torch-free.

The server knows the built-in sources below and what each node declares of its own. `check_fit` says before any node is
bothered whether a model and a loss can train on a source.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from trainer.sections.data import SourceName
from trainer.sections.disagreement import counted, plain
from trainer.sections.model import LinearModel, MlpModel, Model
from trainer.spec import JobSpec

MAX_PARAMETERS = 1_000_000_000
"""Numbers that a model may learn: 4 GB as float32, and the conductor holds its sums in float64 besides."""

Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
"""Text from a node. No database keeps a NUL."""


class SourceSchema(BaseModel):
    """The shape of one data source. `shape` is that of a single example, without the batch dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SourceName
    title: Line = ""
    task: Literal["classification", "regression"]
    shape: tuple[int, ...] = Field(min_length=1, max_length=4)
    """(features,) for a table, (channels, height, width) for images."""
    num_rows: int = Field(ge=1)
    num_classes: int | None = Field(default=None, ge=2)
    """Number of labels; None for a regression."""
    columns: tuple[Line, ...] = ()
    """Names of the feature columns, if there are any."""
    label: Line = ""
    """Name of the target column, if it has one."""
    classes: tuple[str, ...] = ()
    """Names of the labels in the order of their numbers, where they are text. Nodes that differ here do not mean the same."""

    @property
    def num_outputs(self) -> int:
        """Outputs that a model needs for this source."""
        return self.num_classes or 1


_CELL_MEASURES = (
    *("radius", "texture", "perimeter", "area", "smoothness"),
    *("compactness", "concavity", "concave points", "symmetry", "fractal dimension"),
)

BUILTIN_SOURCES: dict[str, SourceSchema] = {
    "digits": SourceSchema(
        name="digits",
        title="Handwritten digits, 8x8 (scikit-learn)",
        task="classification",
        shape=(1, 8, 8),
        num_rows=1797,
        num_classes=10,
        label="digit",
    ),
    "breast_cancer": SourceSchema(
        name="breast_cancer",
        title="Breast cancer Wisconsin, diagnostic (scikit-learn)",
        task="classification",
        shape=(30,),
        num_rows=569,
        num_classes=2,
        columns=(
            *(f"mean {measure}" for measure in _CELL_MEASURES),
            *(f"{measure} error" for measure in _CELL_MEASURES),
            *(f"worst {measure}" for measure in _CELL_MEASURES),
        ),
        label="diagnosis",
    ),
    "diabetes": SourceSchema(
        name="diabetes",
        title="Diabetes progression after one year (scikit-learn)",
        task="regression",
        shape=(10,),
        num_rows=442,
        columns=("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
        label="progression",
    ),
}


class SpecProblem(BaseModel):
    """One thing wrong with a spec: where, and a sentence that says what to do."""

    loc: tuple[str | int, ...]
    message: str
    """For who writes YAML: fields and values are called by their names in the spec."""
    marked: str = ""
    """The same sentence, its fields and values in backticks, for who reads labels; empty where it names none."""

    @classmethod
    def saying(cls, loc: tuple[str | int, ...], marked: str) -> Self:
        """A problem whose sentence is marked as in a `Disagreement`, with paths from the top of the spec."""
        return cls(loc=loc, message=plain(marked), marked=marked)


def count_parameters(model: Model, source: SourceSchema) -> int:
    """Return how many numbers a model learns on a source that it fits; `trainer/models.py` builds the same layers."""
    if isinstance(model, LinearModel):
        return (prod(source.shape) + model.options.bias) * source.num_outputs
    scales = 0 if model.options.norm == "none" else 2  # a factor and a constant for each normalised channel
    if isinstance(model, MlpModel):
        widths = [prod(source.shape), *model.options.hidden, source.num_outputs]
        return sum((before + 1) * after for before, after in pairwise(widths)) + scales * sum(model.options.hidden)
    channels, height, width = source.shape
    depth = len(model.options.channels)
    convolved = sum((9 * before + 1) * after for before, after in pairwise([channels, *model.options.channels]))
    flat = model.options.channels[-1] * (height >> depth) * (width >> depth)
    dense = (flat + 1) * model.options.hidden + (model.options.hidden + 1) * source.num_outputs
    return convolved + dense + scales * (sum(model.options.channels) + model.options.hidden)


def count_test_rows(num_rows: int, test_fraction: float) -> int:
    """Return how many of at least 2 rows are held out for testing: the fraction, rounded, and at least one row on either side."""
    return min(max(round(num_rows * test_fraction), 1), num_rows - 1)


def count_client_rows(spec: JobSpec, source: SourceSchema) -> int:
    """Return how many rows a client trains on: a node's own, or an even share of the source's, at least one."""
    train_rows = source.num_rows - count_test_rows(source.num_rows, spec.data.test_fraction)
    if spec.data.partition.scheme == "natural" or spec.federated is None:
        return train_rows
    return max(1, train_rows // spec.federated.clients.total)


def server_has_test_rows(spec: JobSpec) -> bool:
    """Whether the server measures each round's new weights on the very rows that the clients test on: of a built-in data set."""
    return spec.federated is not None and spec.federated.server_data in BUILTIN_SOURCES


def check_fit(spec: JobSpec, source: SourceSchema) -> list[SpecProblem]:
    """Return every reason why `spec` cannot train on `source`; an empty list means that it can."""
    problems: list[SpecProblem] = []

    def say(*loc: str, message: str) -> None:
        problems.append(SpecProblem.saying(loc, message))

    if spec.model.name == "cnn":
        if len(source.shape) != 3:
            say(
                "model",
                "name",
                message=f"A `model=cnn` needs images, and '{source.name}' is a table of {source.shape[0]} columns: choose `model=mlp` or `model=linear`.",
            )
        elif min(source.shape[1:]) < 2 ** len(spec.model.options.channels):
            most = min(source.shape[1:]).bit_length() - 1
            say(
                "model",
                "options",
                "channels",
                message=f"Each convolution halves the image, and '{source.name}' is {source.shape[1]}x{source.shape[2]}: use at most {most} of them.",
            )
    if not problems and (num := count_parameters(spec.model, source)) > MAX_PARAMETERS:
        where = ("name",) if spec.model.name == "linear" else ("options", "hidden")
        say(
            "model",
            *where,
            message=f"This model would learn {num:,} numbers, and at most {MAX_PARAMETERS:,} are possible: use smaller layers.",
        )
    loss = spec.training.loss
    if loss in ("cross_entropy", "hinge") and source.task == "regression":
        say(
            "training",
            "loss",
            message=f"'{source.name}' is a regression, and `training.loss={loss}` needs classes: choose `training.loss=mse` or `training.loss=auto`.",
        )
    if loss == "mse" and source.task == "classification":
        say(
            "training",
            "loss",
            message=f"'{source.name}' has classes, and `training.loss=mse` needs numbers: choose `training.loss=cross_entropy`, `training.loss=hinge` or `training.loss=auto`.",
        )
    stop = spec.federated.stop if spec.federated else None
    if stop and stop.metric.endswith("/accuracy" if source.task == "regression" else "/r2"):
        kind, better = ("a regression", "r2") if source.task == "regression" else ("a classification", "accuracy")
        who = stop.metric.partition("/")[0]
        say(
            "federated",
            "stop",
            "metric",
            message=f"'{source.name}' is {kind}, which has no {stop.metric}: choose {who}/{better} or {who}/loss.",
        )
    local = spec.federated.local_privacy if spec.federated else None
    if local and local.delta * (num := count_client_rows(spec, source)) >= 1:
        say(
            "federated",
            "local_privacy",
            "delta",
            message=f"A client has about {num:,} rows of '{source.name}', and the delta must be below {1 / num:.2g}, or it allows to give one of them away.",
        )
    partition = spec.data.partition
    if partition.scheme == "natural" and spec.is_simulated:
        say(
            "data",
            "partition",
            "scheme",
            message="A simulation deals the rows of one source to its clients, and with `data.partition=natural` each would have all of them: choose `data.partition=iid` or another scheme.",
        )
    if partition.scheme in ("shards", "dirichlet") and source.task == "regression":
        say(
            "data",
            "partition",
            "scheme",
            message=f"'{source.name}' has no labels to split by: choose `data.partition=iid`, `data.partition=quantity`, `data.partition=column` or `data.partition=natural`.",
        )
    if partition.scheme == "column" and partition.column not in source.columns:
        shown = ", ".join(source.columns[:20]) + (", ..." if len(source.columns) > 20 else "")
        say(
            "data",
            "partition",
            "column",
            message=f"'{source.name}' has no column '{partition.column}': choose one of {shown}."
            if source.columns
            else f"'{source.name}' has no named columns to split by: choose another scheme.",
        )
    train_rows = source.num_rows - count_test_rows(source.num_rows, spec.data.test_fraction)
    parts = spec.federated.clients.total if spec.federated else spec.num_nodes * spec.slots_per_node
    if partition.scheme != "natural" and train_rows < parts:
        say(
            "data",
            "test_fraction",
            message=f"'{source.name}' leaves {train_rows} training rows for {counted(parts, 'participant')}: each needs at least one.",
        )
    return problems

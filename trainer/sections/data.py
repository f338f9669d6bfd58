"""The section `data`: which rows, and how they are shared out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from trainer.sections.part import Part

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=100)]


class NaturalPartition(Part):
    """Each node trains on its own rows of the source."""

    scheme: Literal["natural"]


class IidPartition(Part):
    """The rows are shuffled and dealt evenly to the clients."""

    scheme: Literal["iid"]


class ShardsPartition(Part):
    """The rows are sorted by label, cut into equal shards, and each client gets a few (McMahan et al. 2017)."""

    scheme: Literal["shards"]
    shards_per_client: int = Field(default=2, ge=1, le=1000)
    """Shards that each client gets. Fewer shards, fewer labels on each client."""


class DirichletPartition(Part):
    """Each label's rows are split by proportions drawn from a Dirichlet distribution (Hsu et al. 2019)."""

    scheme: Literal["dirichlet"]
    alpha: float = Field(default=0.5, gt=0, le=1000)
    """Concentration. Near 0 each label lies with one client; large values come close to iid."""


class QuantityPartition(Part):
    """Clients differ in size alone: their shares of the rows are drawn from a Dirichlet distribution (Li et al. 2022)."""

    scheme: Literal["quantity"]
    alpha: float = Field(default=0.5, gt=0, le=1000)
    """Concentration. Near 0 one client has almost all rows; large values come close to even shares."""


class ColumnPartition(Part):
    """Rows with the same value of a column go to the same client, as if each were a site, or a year.

    Sizes are as even as the values allow. The column stays a feature of the model.
    """

    scheme: Literal["column"]
    column: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """Name of a feature column of the data source; it needs at least as many values as there are clients."""


Partition = Annotated[
    NaturalPartition | IidPartition | ShardsPartition | DirichletPartition | QuantityPartition | ColumnPartition,
    Field(discriminator="scheme"),
]


class Data(Part):
    source: SourceName = Field(title="Data source")
    """Name of a built-in data set or of a data source that the nodes declare."""
    test_fraction: float = Field(default=0.2, ge=0.01, le=0.9)
    """Share of the rows that is held out for testing; it is never trained on."""
    partition: Partition = IidPartition(scheme="iid")
    """How the training rows are spread over the clients of a federated job. Ranks of a distributed job always share evenly."""
    scaling: Literal["standard", "none"] = "standard"
    """standard: columns (and a regression's target) to mean 0 and deviation 1, measured on the training rows at hand."""

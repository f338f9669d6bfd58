"""The one spec of a job: every field with its unit and limits, and nothing that needs torch.

The browser's form, the API, the command line and the node all validate with these models, and the form's fields, help
texts and limits are read from them. A spec is frozen: what a node trains is what the user submitted.

Registered names (models, optimizers, partitions, strategies) are discriminated unions, so an option that belongs to
another entry is an error at its own field. The builders behind the names live where torch is: `trainer/models.py` and its
neighbours; `tests/trainer/test_registries.py` holds both sides together.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from unicodedata import category

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=100)]
Label = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.=-]*$", max_length=63)]
Width = Annotated[int, Field(ge=1, le=65_536)]


class Part(BaseModel):
    """A frozen piece of a spec. Unknown fields are errors, so that a misspelt option never trains silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- models -----------------------------------------------------------------------------------------------------------


class LinearOptions(Part):
    bias: bool = True
    """Add a learned constant to each output."""


class MlpOptions(Part):
    hidden: tuple[Width, ...] = Field(default=(200, 200), min_length=1, max_length=32, title="Hidden layers")
    """Units of each hidden layer, first to last."""
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    """Non-linearity after each hidden layer."""


class CnnOptions(Part):
    channels: tuple[Width, ...] = Field(default=(16, 32), min_length=1, max_length=8)
    """Channels of each 3x3 convolution; a 2x2 max pooling follows each one."""
    hidden: Width = Field(default=64, title="Dense units")
    """Units of the dense layer before the output."""


class LinearModel(Part):
    """One linear layer: logistic regression for classes, linear regression for numbers."""

    name: Literal["linear"]
    options: LinearOptions = LinearOptions()


class MlpModel(Part):
    """Dense layers with a non-linearity after each one, for tables and small images."""

    name: Literal["mlp"]
    options: MlpOptions = MlpOptions()


class CnnModel(Part):
    """Convolutions with pooling, then a dense layer, for images."""

    name: Literal["cnn"]
    options: CnnOptions = CnnOptions()


Model = Annotated[LinearModel | MlpModel | CnnModel, Field(discriminator="name")]


# --- data -------------------------------------------------------------------------------------------------------------


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


Partition = Annotated[
    NaturalPartition | IidPartition | ShardsPartition | DirichletPartition, Field(discriminator="scheme")
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


# --- training ---------------------------------------------------------------------------------------------------------

LearningRate = Annotated[float, Field(gt=0, le=100)]
Decay = Annotated[float, Field(ge=0, le=10)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class SgdOptimizer(Part):
    """Stochastic gradient descent, with momentum if wished."""

    name: Literal["sgd"]
    lr: LearningRate = Field(default=0.1, title="Learning rate")
    """Length of a step along the gradient."""
    momentum: Beta = 0.0
    """Share of the previous step that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum. Needs a momentum above 0."""
    weight_decay: Decay = 0.0
    """L2 penalty added to the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("Nesterov needs a momentum above 0: set the momentum, for example to 0.9.")
        return self


class AdamOptions(Part):
    lr: LearningRate = Field(default=0.001, title="Learning rate")
    """Length of a step."""
    beta1: Beta = 0.9
    """Decay of the running mean of gradients."""
    beta2: Beta = 0.999
    """Decay of the running mean of squared gradients."""


class AdamOptimizer(AdamOptions):
    """Steps scaled by running means of the gradient and its square (Kingma and Ba 2015)."""

    name: Literal["adam"]
    weight_decay: Decay = 0.0
    """L2 penalty added to the gradient."""


class AdamWOptimizer(AdamOptions):
    """Adam with the weight decay apart from the gradient (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    weight_decay: Decay = 0.01
    """Decay applied to the weights themselves."""


Optimizer = Annotated[SgdOptimizer | AdamOptimizer | AdamWOptimizer, Field(discriminator="name")]


class Training(Part):
    optimizer: Optimizer = SgdOptimizer(name="sgd")
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Rows in each step of one client or rank."""
    loss: Literal["auto", "cross_entropy", "mse", "hinge"] = "auto"
    """auto: cross-entropy for classes, mean squared error for numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; weights stay float32."""


# --- the two modes ----------------------------------------------------------------------------------------------------


class FedAvg(Part):
    """The mean of the clients' updates, weighted by their examples (McMahan et al. 2017)."""

    name: Literal["fedavg"]


FederatedStrategy = FedAvg  # becomes a discriminated union with the second strategy


class Clients(Part):
    num: int = Field(default=2, ge=1, le=10_000, title="Number of clients")
    """Clients of the job. Each one runs on a node of its own."""
    fraction: float = Field(default=1.0, gt=0, le=1, title="Share drawn each round")
    """Share of the clients that is drawn for each round (at least one)."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Least share of a round's drawn clients that must return before its deadline; with fewer the job fails."""


class Federated(Part):
    rounds: int = Field(default=20, ge=1, le=100_000)
    """Exchanges of weights and updates."""
    local_epochs: int = Field(default=1, ge=1, le=1000)
    """Passes of each client over its rows in a round."""
    strategy: FederatedStrategy = FedAvg(name="fedavg")
    clients: Clients = Clients()
    round_deadline_seconds: float = Field(default=600, ge=1, le=7 * 86_400)
    """Seconds after which a round closes with the updates that are in."""


class Ddp(Part):
    """Every rank holds the whole model; gradients are averaged at each step (Li et al. 2020)."""

    name: Literal["ddp"]


DistributedStrategy = Ddp  # becomes a discriminated union with the second strategy


class Distributed(Part):
    strategy: DistributedStrategy = Ddp(name="ddp")
    nodes: int = Field(default=2, ge=1, le=1000)
    """Nodes that train together; the job starts when all of them have room."""
    processes_per_node: int = Field(default=1, ge=1, le=64)
    """Ranks on each node; each takes one slot."""
    epochs: int = Field(default=10, ge=1, le=100_000)
    """Passes over the training rows."""


class Resources(Part):
    gpus_per_process: int = Field(default=0, ge=0, le=1, title="GPUs per process")
    """GPUs of each client or rank; 0 trains on the CPU."""
    node_labels: tuple[Label, ...] = Field(default=(), max_length=20)
    """Only nodes that carry all of these labels take part."""


class JobSpec(Part):
    """What a user asks for."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120)]
    """What the team calls this job."""
    mode: Literal["federated", "distributed"]
    """federated: clients train on their own rows and weights are averaged. distributed: ranks share one training."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Start of every random draw; the same seed gives the same result."""
    model: Model
    data: Data
    training: Training = Training()
    federated: Federated | None = None
    distributed: Distributed | None = None
    resources: Resources = Resources()

    @field_validator("name")
    @classmethod
    def _name_on_one_line(cls, name: str) -> str:
        # Besides, PostgreSQL keeps no NUL.
        if any(category(letter) == "Cc" for letter in name):
            raise ValueError("The name contains a control character, such as a line break: remove it.")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill_the_mode(cls, raw: object) -> object:
        """The section that `mode` names may be left out; it then has its defaults."""
        if isinstance(raw, dict) and raw.get("mode") in ("federated", "distributed"):
            mode = str(raw["mode"])
            return raw if raw.get(mode) is not None else {**raw, mode: {}}
        return raw

    @model_validator(mode="after")
    def _only_the_mode(self) -> Self:
        other = "distributed" if self.mode == "federated" else "federated"
        if getattr(self, other) is not None:
            raise ValueError(f"This job is {self.mode}: remove the section '{other}', or change the mode to {other}.")
        return self

    @property
    def num_nodes(self) -> int:
        """Nodes that the job needs at once."""
        return self.federated.clients.num if self.federated else self._distributed.nodes

    @property
    def slots_per_node(self) -> int:
        """Slots that the job needs on each of its nodes."""
        return 1 if self.federated else self._distributed.processes_per_node

    @property
    def _distributed(self) -> Distributed:
        assert self.distributed is not None  # the validators leave exactly one section
        return self.distributed

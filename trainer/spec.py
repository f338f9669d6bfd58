"""The one spec of a job: every field with its unit and limits, and nothing that needs torch.

The browser's form, the API, the command line and the node all validate with these models, and the form's fields, help
texts and limits are read from them. A spec is frozen: what a node trains is what the user submitted. Its sections lie in
`trainer/sections/`, one module each.

Registered names (models, optimizers, partitions, strategies) are discriminated unions, so an option that belongs to
another entry is an error at its own field. The builders behind the names live where torch is: `trainer/models.py` and its
neighbours; `tests/trainer/test_registries.py` holds both sides together.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from unicodedata import category

from pydantic import Field, StringConstraints, field_validator, model_validator

from trainer.sections.data import Data
from trainer.sections.disagreement import Disagreement
from trainer.sections.distributed import Distributed
from trainer.sections.federated import Federated
from trainer.sections.model import Model
from trainer.sections.part import Label, Part
from trainer.sections.together import check_batch_norm, check_local_privacy, check_strategy
from trainer.sections.training import Training


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
            raise Disagreement(
                f"This job is `mode={self.mode}`: remove the section '{other}', or change `mode` to `mode={other}`."
            )
        return self

    @model_validator(mode="after")
    def _strategy_fits_training(self) -> Self:
        if self.federated:
            check_strategy(self.federated, self.model, self.training)
            check_local_privacy(self.federated, self.model, self.data)
        check_batch_norm(self.federated, self.model, self.training)
        return self

    @property
    def num_nodes(self) -> int:
        """Nodes that the job needs at once."""
        return self.federated.clients.num if self.federated else self._distributed.nodes

    @property
    def slots_per_node(self) -> int:
        """Slots that the job needs on each of its nodes."""
        return self.federated.clients.processes_per_node if self.federated else self._distributed.processes_per_node

    @property
    def is_simulated(self) -> bool:
        """A federated job whose clients are virtual: its nodes run ranks that train them side by side."""
        return self.federated is not None and self.federated.clients.simulate is not None

    @property
    def _distributed(self) -> Distributed:
        assert self.distributed is not None  # the validators leave exactly one section
        return self.distributed

"""Every name that a spec may hold has a builder, and every builder a name."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args

import pytest

from trainer.data.builtin import SOURCES
from trainer.data.files import FORMATS
from trainer.data.partition import DEALS
from trainer.federated.robust import AGGREGATORS
from trainer.federated.server import SERVER_OPTIMIZERS
from trainer.federated.strategy import STRATEGIES
from trainer.losses import AUTO, LOSSES
from trainer.models import ACTIVATIONS, MODELS
from trainer.optimizers import OPTIMIZERS
from trainer.sections.data import Partition
from trainer.sections.model import MlpOptions, Model
from trainer.sections.part import Part
from trainer.sections.strategy import Aggregator, ServerOptimizer, Strategy
from trainer.sections.training import Optimizer, Training
from trainer.sources import BUILTIN_SOURCES


def names_of(union: Any, field: str = "name") -> set[str]:
    """The discriminator's values of an annotated union, or of a single entry."""
    members = get_args(get_args(union)[0]) if get_args(union) else (union,)
    return {get_args(member.model_fields[field].annotation)[0] for member in members}


def choices(model: type[Part], field: str) -> set[str]:
    annotation = model.model_fields[field].annotation
    assert not isinstance(annotation, UnionType)
    return set(get_args(annotation))


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (MODELS, names_of(Model)),
        (OPTIMIZERS, names_of(Optimizer)),
        (STRATEGIES, names_of(Strategy)),
        (AGGREGATORS, names_of(Aggregator)),
        (SERVER_OPTIMIZERS, names_of(ServerOptimizer)),
        # 'natural' deals nothing: the node's rows are its own already.
        (DEALS, names_of(Partition, "scheme") - {"natural"}),
        (LOSSES, choices(Training, "loss") - {"auto"}),
        (ACTIVATIONS, choices(MlpOptions, "activation")),
        (SOURCES, set(BUILTIN_SOURCES)),
    ],
)
def test_registry_and_spec_agree(registry: dict[str, Any], names: set[str]) -> None:
    assert set(registry) == names


def test_auto_loss_is_a_loss() -> None:
    assert set(AUTO.values()) <= set(LOSSES)


def test_formats() -> None:
    assert set(FORMATS) == {".csv", ".parquet", ".npz"}

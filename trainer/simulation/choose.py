"""Which executor trains a simulation's clients: the one place of the rule, with the measurements it rests on."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from trainer.federated.local_round import LocalTrainer, WriteFile
from trainer.simulation.executor import OneByOne
from trainer.simulation.rows import VirtualRows
from trainer.simulation.side_by_side import SideBySide
from trainer.spec import JobSpec

logger = logging.getLogger(__name__)

ExecutorName = Literal["one_by_one", "side_by_side"]
STACKED_STRATEGIES = ("fedavg", "fednova", "fedbn", "fusion", "one_shot")
"""Those whose clients change no gradient and measure nothing beforehand."""
LEAST_STACK = 20
"""Clients of one rank in a round from which stacking them gains on a CPU."""
MOST_STACKED_PARAMETERS = 50_000
"""Parameters of a linear model or an mlp up to which stacking gains on a CPU."""


def choose_executor(spec: JobSpec, device: torch.device, num_parameters: int) -> tuple[ExecutorName, str]:
    """Return how a rank trains its clients, and why.

    Measured on one CPU core, MNIST, B=10, E=1, 80 rows a client: time side by side over time one by one, for 5, 10 and 40 clients:
    linear 1.41, 0.84, 0.57; mlp 784-32-10 (25 thousand parameters) 1.24, 0.83, 0.58; mlp 784-200-200-10 (199 thousand) 1.08, 0.91, 1.00;
    cnn of 8 and 16 channels 0.83, 0.80, 0.66. Below `LEAST_STACK` clients the gain does not make up for bits that equal real nodes',
    which `OneByOne` alone gives. On a GPU each small kernel is a wait, so there whatever can be stacked is.
    """
    if why := why_not_stacked(spec):
        return "one_by_one", why
    if device.type != "cpu":
        return "side_by_side", "on a GPU many small steps at once cost little more than one"
    assert spec.federated is not None
    clients = spec.federated.clients
    if clients.num_drawn < LEAST_STACK * clients.num * clients.processes_per_node:
        return "one_by_one", f"a process has fewer than {LEAST_STACK} clients in a round"
    if spec.model.name != "cnn" and num_parameters > MOST_STACKED_PARAMETERS:
        return "one_by_one", f"the model has more than {MOST_STACKED_PARAMETERS:,} parameters"
    return "side_by_side", f"a process has {LEAST_STACK} clients or more in a round, and small models gain by it"


def why_not_stacked(spec: JobSpec) -> str:
    """Return what of the spec cannot be stacked, empty where all can."""
    assert spec.federated is not None
    if spec.federated.strategy.name not in STACKED_STRATEGIES:
        return f"clients of {spec.federated.strategy.name} change or measure more than their own gradients"
    if spec.model.name != "linear" and spec.model.options.norm == "batch":
        return "batch normalisation changes its statistics in place"
    if spec.training.loss == "hinge":
        return "the hinge loss has no rule for stacks"
    if spec.training.precision == "bfloat16":
        return "bfloat16 casts by operation, which stacks do not see"
    return ""


def build_executor(
    spec: JobSpec, trainer: LocalTrainer, rows: VirtualRows, write_file: WriteFile
) -> OneByOne | SideBySide:
    """Return the executor of this rank."""
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    name, why = choose_executor(spec, trainer.device, num_parameters)
    logger.info("Clients are trained %s: %s.", name.replace("_", " "), why)
    if name == "one_by_one":
        return OneByOne(trainer, rows)
    return SideBySide(spec, trainer, rows, write_file)

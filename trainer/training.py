"""The local loop: what every client and rank does with its own rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.losses import Objective
from trainer.models import least_batch

Precision = Literal["float32", "bfloat16"]
EVALUATION_ROWS = 4096
"""Rows in one forward pass without gradients, or in one sum: large enough to be quick, small enough for any memory."""


def seeds_of(*parts: int) -> np.random.SeedSequence:
    """Return the start of random draws that depend on all of `parts` (such as seed, round, client), and on nothing else."""
    # With their number: to SeedSequence alone, trailing zeros are nothing.
    return np.random.SeedSequence([len(parts), *parts])


def seeded_generator(*parts: int) -> torch.Generator:
    """Return torch's generator for `seeds_of(*parts)`."""
    return torch.Generator().manual_seed(int(seeds_of(*parts).generate_state(1, np.uint64)[0] >> 1))


def choose_device(gpus_per_process: int, local_rank: int = 0) -> torch.device:
    """Return where this process trains. Raises ValueError where the spec asks for a GPU and there is none."""
    if not gpus_per_process:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"The job asks for a GPU for each process, and this node has {torch.cuda.device_count()}: "
            "set resources.gpus_per_process to 0, or choose other nodes."
        )
    return torch.device("cuda", local_rank)


def forward_context(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of forward passes: autocast for bfloat16; weights and updates stay float32."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()  # an autocast that does nothing would still cost 10 microseconds a step


class Tally:
    """The sums of `objective` over rows that come in batches. Of the outputs it keeps a few thousand rows at most."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective = objective
        self._totals = objective.no_totals(device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._num_waiting = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch. outputs: (B, K), targets: (B,)."""
        # Summing each small batch by itself would cost as much as its step.
        self._waiting.append((outputs.detach(), targets))
        self._num_waiting += len(targets)
        if self._num_waiting >= EVALUATION_ROWS:
            self._sum()

    def totals(self) -> Tensor:
        """Return the sums over all rows so far, float64."""
        self._sum()
        return self._totals

    def _sum(self) -> None:
        if self._waiting:
            outputs, targets = zip(*self._waiting, strict=True)
            self._totals = self._totals + self._objective.totals(torch.cat(outputs), torch.cat(targets))
            self._waiting.clear()
            self._num_waiting = 0


def batches_of(order: Tensor, batch_size: int, least: int = 1) -> list[Tensor]:
    """Cut `order` into batches. The last may be smaller; with fewer than `least` rows it joins the one before it."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def train_epoch(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    precision: Precision,
    generator: torch.Generator,
    before_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train one pass over the rows, in an order drawn from `generator`; the last batch may be smaller.

    `before_step` is called at each step when the gradients are there, which it may change.
    Returns the metrics of the rows as the steps saw them, each batch before its own step: they cost no second pass.
    """
    order = torch.randperm(len(y), generator=generator).to(y.device)
    context = forward_context(precision, y.device)
    seen = Tally(objective, y.device)
    model.train()
    # Rows are indexed directly: a DataLoader in Python costs more than the step of a small model.
    for rows in batches_of(order, batch_size, least_batch(model)):
        optimizer.zero_grad()
        with context:
            outputs = model(x[rows]).float()
        targets = y[rows]
        torch.autograd.backward(objective.loss(outputs, targets))
        if before_step:
            before_step()
        optimizer.step()
        seen.add(outputs, targets)
    return objective.metrics(seen.totals())


def train_epochs(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int,
    precision: Precision,
    generator: torch.Generator,
    after_epoch: Callable[[int, dict[str, float]], None],
    before_step: Callable[[], None] | None = None,
) -> None:
    """Train `epochs` passes, as `train_epoch`. `after_epoch` is called with the epoch, from 1, and the metrics of its training rows."""
    for epoch in range(1, epochs + 1):
        metrics = train_epoch(
            model,
            objective,
            optimizer,
            x,
            y,
            batch_size=batch_size,
            precision=precision,
            generator=generator,
            before_step=before_step,
        )
        after_epoch(epoch, metrics)


@torch.inference_mode()
def evaluate_totals(
    model: nn.Module,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    *,
    precision: Precision,
    after_part: Callable[[], None] | None = None,
) -> Tensor:
    """Return the sums of `objective` over the rows, float64. Needs at least one row.

    `after_part` is called after each `EVALUATION_ROWS` rows.
    """
    model.eval()
    parts: list[Tensor] = []
    with forward_context(precision, y.device):
        for part_x, part_y in zip(torch.split(x, EVALUATION_ROWS), torch.split(y, EVALUATION_ROWS), strict=True):
            parts.append(objective.totals(model(part_x).float(), part_y))
            if after_part:
                after_part()
    return torch.stack(parts).sum(dim=0)


def evaluate(
    model: nn.Module,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    *,
    precision: Precision,
    after_part: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Return the metrics of the model on the rows, as `evaluate_totals` sums them: `loss`, and `accuracy` or `r2`."""
    return objective.metrics(evaluate_totals(model, objective, x, y, precision=precision, after_part=after_part))


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics under their full names, such as train/loss."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def described(metrics: dict[str, float]) -> str:
    """Return the metrics as a log line shows them: `train/loss 0.0312, test/accuracy 0.981`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())

"""One rank of a DDP job (Li et al. 2020): every rank holds the model, gradients are averaged at each step.

It runs inside a torch elastic worker, which has set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

In each epoch a seeded permutation orders the rows; a step takes the next `batch_size * world_size` of them, and each rank
its even part. The loss of a rank is weighted by its share of the step's rows, so that the averaged gradient is that of
the joined batch, exactly, also in an epoch's last and uneven step.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainer.data.prepare import Dataset, prepare_rank
from trainer.data.source import Source, SourceError
from trainer.losses import Objective, build_objective
from trainer.models import build_model, weights_of
from trainer.optimizers import build_optimizer
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import (
    Precision,
    Tally,
    choose_device,
    described,
    evaluate_totals,
    forward_context,
    prefixed,
    seeded_generator,
)
from trainer.weights import write_weights

logger = logging.getLogger(__name__)

GPU_LOG_SECONDS = 0.05
"""Pause between two readings of losses from a GPU: each one waits for all work that is queued there."""


class LossLog:
    """Logs train/loss of each step. On a GPU the values stay there for a moment, so that no step waits for the log."""

    def __init__(self, log: MetricLog, device: torch.device) -> None:
        self._log = log
        self._pause = GPU_LOG_SECONDS if device.type == "cuda" else 0.0
        self._waiting: list[tuple[int, Tensor]] = []
        self._read_at = 0.0

    def add(self, step: int, loss: Tensor) -> None:
        """Note the loss of `step`, a scalar."""
        self._waiting.append((step, loss.detach()))
        if time.monotonic() - self._read_at >= self._pause:
            self.flush()

    def flush(self) -> None:
        """Log what waits."""
        if self._waiting:
            steps, losses = zip(*self._waiting, strict=True)
            self._waiting.clear()
            for step, value in zip(steps, torch.stack(losses).tolist(), strict=True):
                self._log.log(step, {"train/loss": value})
            self._read_at = time.monotonic()


def train_rank(spec: JobSpec, source: Source, log: MetricLog, model_path: Path) -> None:
    """Train this rank's part from the first to the last epoch; rank 0 then writes the model and its spec to `model_path`.

    Each rank logs train/loss at every step (from 1), on its own rows. Rank 0 logs, after each epoch and at the step it
    ended with, train/accuracy or train/r2 of all ranks' rows as their steps saw them, and the test metrics. Raises SourceError where the data cannot be used, or differs between ranks, ValueError where
    the node lacks what the spec asks for, and torch's own errors where another rank is lost.
    """
    assert spec.distributed is not None
    device = choose_device(spec.resources.gpus_per_process, int(os.environ["LOCAL_RANK"]))

    # Step 1: the data, before the meeting: who cannot read them fails with a sentence, not in a collective.
    data = prepare_rank(spec, source)

    # Step 2: meet the other ranks.
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        _check_same_data(source, data, device)
        model = build_model(spec.model, source.description, spec.seed).to(device)
        objective = build_objective(spec.training.loss, source.description.task)

        # Step 3: train.
        _train(spec, model, objective, data.to(device), log)

        # Step 4: rank 0 keeps the model.
        if dist.get_rank() == 0:
            write_weights(model_path, weights_of(model), {"spec": spec.model_dump_json()})
    finally:
        dist.destroy_process_group()


def _train(spec: JobSpec, model: nn.Module, objective: Objective, data: Dataset, log: MetricLog) -> None:
    assert spec.distributed is not None
    training = spec.training
    rank, world_size = dist.get_rank(), dist.get_world_size()
    x, y, device = data.train_x, data.train_y, data.train_y.device
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)  # buckets are the gradients: one copy less
    optimizer = build_optimizer(training.optimizer, model.parameters())
    context = forward_context(training.precision, device)
    losses = LossLog(log, device)
    step = 0
    for epoch in range(1, spec.distributed.epochs + 1):
        model.train()
        seen = Tally(objective, device)
        order = torch.randperm(len(y), generator=seeded_generator(spec.seed, epoch)).to(device)
        for joined in torch.split(order, training.batch_size * world_size):
            step += 1
            rows = joined.tensor_split(world_size)[rank]
            share = len(rows) * world_size / len(joined)
            if not len(rows):
                rows = joined[:1]  # it counts for nothing, but every rank must take part in the averaging
            optimizer.zero_grad()
            with context:
                outputs = wrapped(x[rows]).float()
            targets = y[rows]
            loss = objective.loss(outputs, targets)
            torch.autograd.backward(loss if share == 1 else loss * share)
            optimizer.step()
            if share:
                losses.add(step, loss)
                seen.add(outputs, targets)
        losses.flush()
        totals = torch.stack(
            [seen.totals(), _test_totals(model, objective, data, training.precision, rank, world_size)]
        )
        dist.all_reduce(totals)
        if rank == 0:
            train, test = (objective.metrics(part) for part in totals)
            del train["loss"]  # the ranks have logged it, at each step
            metrics = prefixed("train", train) | prefixed("test", test)
            log.log(step, metrics)
            logger.info("Epoch %d of %d, step %d: %s", epoch, spec.distributed.epochs, step, described(metrics))


def _test_totals(
    model: nn.Module, objective: Objective, data: Dataset, precision: Precision, rank: int, world_size: int
) -> Tensor:
    """Return the sums over this rank's part of the test rows."""
    x, y = data.test_x[rank::world_size], data.test_y[rank::world_size]
    if not len(y):
        return objective.no_totals(y.device)
    return evaluate_totals(model, objective, x, y, precision=precision)


def _check_same_data(source: Source, data: Dataset, device: torch.device) -> None:
    """Raise SourceError, on every rank, where ranks do not see the same rows: their steps would not match, and hang."""
    digest = 0
    for tensor in data:
        digest = zlib.crc32(tensor.numpy().data, digest)
    mine = torch.tensor([len(data.train_y), len(data.test_y), digest], device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    for rank, other in enumerate(every):
        if not torch.equal(other, every[0]):
            counts = f"rank 0 has {int(every[0][:2].sum())} rows, rank {rank} has {int(other[:2].sum())}"
            raise SourceError(
                f"The ranks do not see the same rows of '{source.description.name}' ({counts}): a distributed job needs "
                "the same file on each of its nodes. To train on each node's own rows, choose the mode federated."
            )

"""One client's round with whichever model and rows it is given: what a node's client and a simulation's virtual ones share.

Local training as in McMahan et al. 2017, algorithm 1, ClientUpdate: E epochs of minibatch steps from the global weights,
as `trainer/federated/local.py` varies it. What goes back is the difference to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from trainer.data.prepare import Dataset
from trainer.data.source import Source, SourceError
from trainer.federated.encoding import encode_update
from trainer.federated.kept import RESIDUAL, ClientFiles
from trainer.federated.local import Finished, start_local
from trainer.federated.result import ClientResult
from trainer.losses import build_objective
from trainer.models import build_model, least_batch
from trainer.optimizers import build_optimizer
from trainer.sources import server_has_test_rows
from trainer.spec import JobSpec
from trainer.training import choose_device, evaluate, prefixed, seeded_generator, seeds_of, train_epochs
from trainer.weights import Weights, write_weights

if TYPE_CHECKING:
    from trainer.federated.private_local import PrivateTraining

LogEpoch = Callable[[int, dict[str, float]], None]
"""(epochs since the job's start, metrics)."""
WriteFile = Callable[[Path, Weights], None]
"""Writes a safetensors file, as `write_weights` does."""


class LocalTrainer:
    """Model, objective and device of one process. It trains one client's round after another: each depends on its inputs alone."""

    def __init__(
        self,
        spec: JobSpec,
        source: Source,
        *,
        on_progress: Callable[[], None] = lambda: None,
        write_file: WriteFile = write_weights,
    ) -> None:
        """`on_progress` is called at each step, and within evaluations. `write_file` writes the updates.

        Raises ValueError where the node lacks what the spec asks for.
        """
        assert spec.federated is not None
        self.device = choose_device(spec.resources.gpus_per_process)
        self.model = build_model(spec.model, source.description, spec.seed).to(self.device)
        self.objective = build_objective(spec.training.loss, source.description.task)
        self._spec = spec
        self._federated = spec.federated
        self._source_name = source.description.name
        self._on_progress = on_progress
        self._write_file = write_file
        self._private: PrivateTraining | None = None
        if spec.federated.local_privacy:
            from trainer.federated.private_local import PrivateTraining  # Opacus takes 0.2 s to import

            self._private = PrivateTraining(self.model, spec.federated.local_privacy)

    def check_rows(self, num_rows: int) -> None:
        """Raise SourceError where a client has too few training rows for the model."""
        if num_rows < least_batch(self.model):
            raise SourceError(
                f"'{self._source_name}' gives this client a single training row, and batch normalisation needs two: "
                "give each client more rows, or set the model's norm to layer or group."
            )

    def train(
        self,
        client: int,
        data: Dataset,
        round_number: int,
        weights: Weights,
        update_path: Path,
        *,
        memory: Weights,
        files: ClientFiles | None,
        counted_round: int,
        evaluate: bool,
        log_epoch: LogEpoch,
    ) -> ClientResult:
        """Train `local_epochs` from the weights on the rows, which lie on the device, and write the update to the path.

        `memory` is what the strategy remembers, where clients need it. The client goes on from what it kept in `files` of
        `counted_round`, its last round whose update counted (0: none). Raises ValueError where the weights do not fit the model.
        """
        # Step 1: where the round starts.
        kept = files.read(counted_round) if files else {}
        local = start_local(self._spec, self.model, weights, memory, kept)
        # Where the server measures each round's new weights on the same rows, nobody needs to do it again.
        measures_global = evaluate and not server_has_test_rows(self._spec)
        metrics = prefixed("global", self._measure(data.test_x, data.test_y)) if measures_global else {}
        loss_before = None
        if self._federated.strategy.name == "qfedavg":
            loss_before = self._measure(data.train_x, data.train_y)["loss"]

        # Step 2: train. The optimizer starts afresh: its state belongs to other weights.
        num_steps = 0
        seconds_evaluating = 0.0

        def before_step() -> None:
            nonlocal num_steps
            num_steps += 1
            local.correct_gradients()
            self._on_progress()

        def after_epoch(epoch: int, seen: dict[str, float]) -> None:
            nonlocal seconds_evaluating
            started = time.perf_counter()
            tested = prefixed("test", self._measure(data.test_x, data.test_y)) if evaluate else {}
            values = prefixed("train", seen) | tested
            metrics.update(values)
            log_epoch((round_number - 1) * self._federated.local_epochs + epoch, values)
            seconds_evaluating += time.perf_counter() - started

        started = time.perf_counter()
        training = self._spec.training
        generator = seeded_generator(self._spec.seed, round_number, client)
        train = self._private.train_epochs if self._private else partial(train_epochs, self.model, generator=generator)
        train(
            self.objective,
            build_optimizer(training.optimizer, self.model.parameters()),
            data.train_x,
            data.train_y,
            epochs=self._federated.local_epochs,
            batch_size=training.batch_size,
            precision=training.precision,
            before_step=before_step,
            after_epoch=after_epoch,
        )
        seconds_training = time.perf_counter() - started - seconds_evaluating

        # Step 3: write what changed.
        with np.errstate(over="ignore", invalid="ignore"):  # of training that diverged: the server's door says so
            finished = local.finish(num_steps)
        write_update(
            self._spec,
            client,
            round_number,
            finished,
            update_path,
            kept=kept,
            files=files,
            counted_round=counted_round,
            write_file=self._write_file,
        )
        return ClientResult(
            num_examples=len(data.train_y),
            num_steps=num_steps,
            metrics=metrics,
            loss_before=loss_before,
            seconds_training=seconds_training,
        )

    def _measure(self, x: Tensor, y: Tensor) -> dict[str, float]:
        precision = self._spec.training.precision
        return evaluate(self.model, self.objective, x, y, precision=precision, after_part=self._on_progress)


def write_update(
    spec: JobSpec,
    client: int,
    round_number: int,
    finished: Finished,
    path: Path,
    *,
    kept: Weights,
    files: ClientFiles | None,
    counted_round: int,
    write_file: WriteFile = write_weights,
) -> None:
    """Write what a round left, encoded as the spec says. `kept` is what the client had kept of `counted_round`.

    What the client keeps comes first: once the update is gone, it must be there. Raises ValueError where it has no files to.
    """
    assert spec.federated is not None
    left_before = {name.removeprefix(RESIDUAL): value for name, value in kept.items() if name.startswith(RESIDUAL)}
    with np.errstate(over="ignore", invalid="ignore"):  # of training that diverged
        tensors, residual = encode_update(
            finished.delta,
            spec.federated.encoding,
            rng=np.random.default_rng(seeds_of(spec.seed, round_number, client)),
            residual=left_before or None,
        )
    keep = finished.kept | {RESIDUAL + name: value for name, value in (residual or {}).items()}
    if keep:
        if files is None:
            raise ValueError("This strategy or encoding keeps something from round to round, and has nowhere to.")
        files.write(round_number, keep, counted_round=counted_round)
    write_file(path, tensors | finished.beside)

"""One client of a federated job, as a runner keeps it from round to round.

Local training as in McMahan et al. 2017, algorithm 1, ClientUpdate: E epochs of minibatch steps from the global weights,
as `trainer/federated/local.py` varies it. What goes back is the difference to them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from trainer.data.labels import count_labels
from trainer.data.prepare import prepare_client
from trainer.data.source import Source, SourceError
from trainer.federated.encoding import encode_update
from trainer.federated.kept import RESIDUAL, ClientFiles, keeps_something
from trainer.federated.local import Finished, start_local
from trainer.federated.result import ClientResult
from trainer.losses import build_objective
from trainer.models import build_model, least_batch
from trainer.optimizers import build_optimizer
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import choose_device, described, evaluate, prefixed, seeded_generator, seeds_of, train_epochs
from trainer.weights import Weights, map_weights, write_weights

logger = logging.getLogger(__name__)


class FederatedClient:
    """Data and model, loaded once. Rounds may come in any order and more than once: each depends on its inputs alone."""

    def __init__(
        self,
        spec: JobSpec,
        source: Source,
        client: int,
        num_clients: int,
        log: MetricLog,
        *,
        files: ClientFiles | None = None,
        share_label_counts: bool = False,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`files` is where the client keeps what it needs in its next round; only strategies and encodings that keep
        something need it. `on_progress` is called at each step, and within evaluations.

        Raises SourceError where the data cannot be used, ValueError where the node lacks what the spec asks for.
        """
        assert spec.federated is not None
        self._spec = spec
        self._federated = spec.federated
        self._client = client
        self._log = log
        self._files = files if keeps_something(spec.federated) else None
        self._on_progress = on_progress
        self._device = choose_device(spec.resources.gpus_per_process)
        self._data = prepare_client(spec, source, client, num_clients).to(self._device)
        self._model = build_model(spec.model, source.description, spec.seed).to(self._device)
        self._objective = build_objective(spec.training.loss, source.description.task)
        shares = share_label_counts and source.description.task == "classification"
        self._label_counts = count_labels(self._data, source.description) if shares else None
        if len(self._data.train_y) < least_batch(self._model):
            raise SourceError(
                f"'{source.description.name}' gives this client a single training row, and batch normalisation needs two: "
                "give each client more rows, or set the model's norm to layer or group."
            )

    def train_round(
        self,
        round_number: int,
        weights_path: Path,
        update_path: Path,
        *,
        memory_path: Path | None = None,
        evaluate: bool = True,
        counted_round: int = 0,
    ) -> ClientResult:
        """Train `local_epochs` from the weights in the file and write the update, encoded as the spec says, to the other.

        All files are safetensors; the weights are float32, and `memory_path` is what the strategy remembers, where clients
        need it. The client goes on from what it kept of `counted_round`, its last round whose update counted (0: none).
        Metrics are logged for each local epoch, at the number of epochs since the job's start. Raises ValueError where the
        weights do not fit the model.
        """
        # Step 1: where the round starts.
        memory = map_weights(memory_path) if memory_path else {}
        kept = self._files.read(counted_round) if self._files else {}
        local = start_local(self._spec, self._model, map_weights(weights_path), memory, kept)
        metrics = prefixed("global", self._test()) if evaluate else {}
        loss_before = None
        if self._federated.strategy.name == "qfedavg":
            loss_before = self._measure(self._data.train_x, self._data.train_y)["loss"]

        # Step 2: train. The optimizer starts afresh: its state belongs to other weights.
        num_steps = 0
        seconds_evaluating = 0.0

        def before_step() -> None:
            nonlocal num_steps
            num_steps += 1
            local.correct_gradients()
            self._on_progress()

        def log_epoch(epoch: int, seen: dict[str, float]) -> None:
            nonlocal seconds_evaluating
            started = time.perf_counter()
            values = prefixed("train", seen) | (prefixed("test", self._test()) if evaluate else {})
            metrics.update(values)
            self._log.log((round_number - 1) * self._federated.local_epochs + epoch, values)
            seconds_evaluating += time.perf_counter() - started

        started = time.perf_counter()
        training = self._spec.training
        train_epochs(
            self._model,
            self._objective,
            build_optimizer(training.optimizer, self._model.parameters()),
            self._data.train_x,
            self._data.train_y,
            epochs=self._federated.local_epochs,
            batch_size=training.batch_size,
            precision=training.precision,
            generator=seeded_generator(self._spec.seed, round_number, self._client),
            before_step=before_step,
            after_epoch=log_epoch,
        )
        seconds_training = time.perf_counter() - started - seconds_evaluating

        # Step 3: write what changed. What the client keeps comes first: once the update is gone, it must be there.
        with np.errstate(over="ignore", invalid="ignore"):  # of training that diverged: the server's door says so
            self._write(round_number, local.finish(num_steps), kept, update_path, counted_round)
        num_examples = len(self._data.train_y)
        logger.info("Round %d: %d rows in %.3f s; %s", round_number, num_examples, seconds_training, described(metrics))
        return ClientResult(
            num_examples=num_examples,
            num_steps=num_steps,
            metrics=metrics,
            loss_before=loss_before,
            seconds_training=seconds_training,
            label_counts=self._label_counts,
        )

    def _write(
        self, round_number: int, finished: Finished, kept: Weights, update_path: Path, counted_round: int
    ) -> None:
        left_before = {name.removeprefix(RESIDUAL): value for name, value in kept.items() if name.startswith(RESIDUAL)}
        tensors, residual = encode_update(
            finished.delta,
            self._federated.encoding,
            rng=np.random.default_rng(seeds_of(self._spec.seed, round_number, self._client)),
            residual=left_before or None,
        )
        keep = finished.kept | {RESIDUAL + name: value for name, value in (residual or {}).items()}
        if keep:
            if self._files is None:
                raise ValueError("This strategy or encoding keeps something from round to round, and has nowhere to.")
            self._files.write(round_number, keep, counted_round=counted_round)
        write_weights(update_path, tensors | finished.beside)

    def _test(self) -> dict[str, float]:
        return self._measure(self._data.test_x, self._data.test_y)

    def _measure(self, x: Tensor, y: Tensor) -> dict[str, float]:
        precision = self._spec.training.precision
        return evaluate(self._model, self._objective, x, y, precision=precision, after_part=self._on_progress)

"""One client of a federated job, as a runner keeps it from round to round.

Local training as in McMahan et al. 2017, algorithm 1, ClientUpdate: E epochs of minibatch steps from the global weights.
What goes back is the difference to them.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.data.prepare import prepare_client
from trainer.data.source import Source
from trainer.losses import build_objective
from trainer.models import build_model, load_weights, weights_of
from trainer.optimizers import build_optimizer
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import choose_device, described, evaluate, prefixed, seeded_generator, train_epochs
from trainer.weights import map_weights, write_weights

logger = logging.getLogger(__name__)


class ClientResult(BaseModel):
    """What a client says beside its update. It goes into `protocol.UpdateOffer`."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")  # a loss may diverge

    num_examples: int
    """Rows that the client trained on: its weight in the mean."""
    metrics: dict[str, float]
    """global/*: the incoming weights on the test rows. train/*: the last local epoch's rows as its steps saw them.
    test/*: the trained weights on the test rows."""
    seconds_training: float
    """Time of the local epochs alone, without reading, evaluating and writing."""


class FederatedClient:
    """Data and model, loaded once. Rounds may come in any order and more than once: each depends on its inputs alone."""

    def __init__(self, spec: JobSpec, source: Source, client: int, num_clients: int, log: MetricLog) -> None:
        """Raises SourceError where the data cannot be used, ValueError where the node lacks what the spec asks for."""
        assert spec.federated is not None
        self._spec = spec
        self._client = client
        self._local_epochs = spec.federated.local_epochs
        self._log = log
        self._device = choose_device(spec.resources.gpus_per_process)
        self._data = prepare_client(spec, source, client, num_clients).to(self._device)
        self._model = build_model(spec.model, source.description, spec.seed).to(self._device)
        self._objective = build_objective(spec.training.loss, source.description.task)

    def train_round(self, round_number: int, weights_path: Path, update_path: Path) -> ClientResult:
        """Train `local_epochs` from the weights in the file and write the update, local minus global, beside it.

        Both files are safetensors of float32. Metrics are logged for each local epoch, at the number of epochs since
        the job's start. Raises ValueError where the weights do not fit the model.
        """
        training = self._spec.training
        data = self._data

        # Step 1: take over the global weights.
        global_weights = map_weights(weights_path)
        load_weights(self._model, global_weights)
        metrics = prefixed("global", self._evaluate())

        # Step 2: train. The optimizer starts afresh: a client keeps nothing from round to round.
        seconds_evaluating = 0.0

        def log_epoch(epoch: int, seen: dict[str, float]) -> None:
            nonlocal seconds_evaluating
            started = time.perf_counter()
            values = prefixed("train", seen) | prefixed("test", self._evaluate())
            metrics.update(values)
            self._log.log((round_number - 1) * self._local_epochs + epoch, values)
            seconds_evaluating += time.perf_counter() - started

        started = time.perf_counter()
        train_epochs(
            self._model,
            self._objective,
            build_optimizer(training.optimizer, self._model.parameters()),
            data.train_x,
            data.train_y,
            epochs=self._local_epochs,
            batch_size=training.batch_size,
            precision=training.precision,
            generator=seeded_generator(self._spec.seed, round_number, self._client),
            after_epoch=log_epoch,
        )
        seconds_training = time.perf_counter() - started - seconds_evaluating

        # Step 3: write what changed.
        local_weights = weights_of(self._model)
        write_weights(update_path, {name: local_weights[name] - value for name, value in global_weights.items()})
        num_examples = len(data.train_y)
        logger.info("Round %d: %d rows in %.3f s; %s", round_number, num_examples, seconds_training, described(metrics))
        return ClientResult(num_examples=num_examples, metrics=metrics, seconds_training=seconds_training)

    def _evaluate(self) -> dict[str, float]:
        precision = self._spec.training.precision
        return evaluate(self._model, self._objective, self._data.test_x, self._data.test_y, precision=precision)

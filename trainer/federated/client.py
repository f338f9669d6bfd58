"""One client of a federated job, as a runner keeps it from round to round. `trainer/federated/local_round.py` trains it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from trainer.data.labels import count_labels
from trainer.data.prepare import prepare_client
from trainer.data.source import Source
from trainer.federated.kept import ClientFiles, keeps_something
from trainer.federated.local_round import LocalTrainer
from trainer.federated.result import ClientResult
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog
from trainer.training import described
from trainer.weights import map_weights

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
        share_metrics: bool = True,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`files` is where the client keeps what it needs in its next round; only strategies and encodings that keep
        something need it. `on_progress` is called at each step, and within evaluations. Without `share_metrics` the client
        measures nothing and says no figure of its rows: results, curves and lines go to the server.

        Raises SourceError where the data cannot be used, ValueError where the node lacks what the spec asks for.
        """
        assert spec.federated is not None
        self._client = client
        self._log = log
        self._files = files if keeps_something(spec.federated) else None
        self._trainer = LocalTrainer(spec, source, on_progress=on_progress)
        self._data = prepare_client(spec, source, client, num_clients).to(self._trainer.device)
        self._trainer.check_rows(len(self._data.train_y))
        self._share_metrics = share_metrics
        shares = share_label_counts and share_metrics and source.description.task == "classification"
        self._label_counts = count_labels(self._data, source.description) if shares else None

    @property
    def num_rows(self) -> int:
        """Rows that this client trains on."""
        return len(self._data.train_y)

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
        result = self._trainer.train(
            self._client,
            self._data,
            round_number,
            map_weights(weights_path),
            update_path,
            memory=map_weights(memory_path) if memory_path else {},
            files=self._files,
            counted_round=counted_round,
            evaluate=evaluate and self._share_metrics,
            log_epoch=self._log.log if self._share_metrics else lambda _epoch, _values: None,
        )
        if not self._share_metrics:
            result = result.model_copy(update={"metrics": {}, "loss_before": None})
        logger.info(
            "Round %d: %d rows in %.3f s; %s",
            round_number,
            result.num_examples,
            result.seconds_training,
            described(result.metrics) if self._share_metrics else "the node's owner keeps the figures",
        )
        return result.model_copy(update={"label_counts": self._label_counts})

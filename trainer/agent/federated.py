"""One attempt of a federated job on this node: one runner, kept with data and model loaded from round to round."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Literal

from trainer.agent.blobs import BlobProblem, patiently
from trainer.agent.masking import CannotMask, LeftOut
from trainer.agent.node import Node, Refused, update_file
from trainer.agent.pace import PROGRESS_SECONDS, Pace
from trainer.agent.runner import Runner, RunnerEnded
from trainer.agent.server import PASSING, ServerRefusal
from trainer.agent.work import ClientWork, RoundDone, TrainCommand
from trainer.federated.kept import ClientFiles
from trainer.protocol import RunReport, TrainRound, UpdateOffer
from trainer.secure.session import NotSafe

logger = logging.getLogger(__name__)


class FederatedAttempt:
    """Rounds of one attempt. `train_round` runs in the thread of its Celery task; `stop` may come from any other."""

    slots = 1

    def __init__(self, node: Node, attempt_id: int) -> None:
        self.attempt_id = attempt_id
        self.stopped = threading.Event()
        self.used_at = time.monotonic()
        self._node = node
        self._folder = node.home.run_folder(attempt_id)
        self._lock = threading.Lock()
        self._round = 0
        self._working = 0  # tasks that have claimed a round and not ended: training, or delivering
        self._training = False  # the runner is at work
        self._runner: Runner | None = None
        self._gpus: list[int] = []
        self._started = False

    @property
    def idle(self) -> bool:
        return self._working == 0

    def train_round(self, message: TrainRound) -> bool:
        """Train one round and deliver it. Returns whether the attempt may go on here.

        A second delivery of the round being worked on, and any older round, is ignored. A newer one takes over.
        """
        if self._node.maskings.has_begun(message) or not self._claim(message.round):
            return True
        try:
            return self._train(message)
        except LeftOut as left_out:
            logger.info("Attempt %d: %s", self.attempt_id, left_out)
        except (Refused, NotSafe) as refused:
            self._report("refused", message, str(refused))
        except (RunnerEnded, CannotMask, BlobProblem, ServerRefusal, *PASSING) as error:
            if not self._superseded(message):
                self._report("failed", message, f"Round {message.round} on {self._node.name} failed: {error}")
        finally:
            with self._lock:
                self._working -= 1
                if self._round == message.round:
                    self._training = False
            self.used_at = time.monotonic()
        return self._superseded(message)

    def stop(self) -> None:
        """End the runner. What is being trained or transferred is given up."""
        self.stopped.set()
        with self._lock:
            runner, self._runner = self._runner, None
            gpus, self._gpus = self._gpus, []
        self._node.maskings.end(self.attempt_id)
        if runner:
            runner.stop()
        self._node.gpus.give_back(gpus)

    def _claim(self, round_number: int) -> bool:
        with self._lock:
            if self.stopped.is_set() or round_number < self._round or (round_number == self._round and self._working):
                return False
            # A round that is only being delivered does not need the runner, and often the server's next round comes
            # before its answer to the last one.
            late = self._runner if self._training else None
            if late:
                self._runner, self._training = None, False
            self._round = round_number
            self._working += 1
        if late:
            logger.info("Attempt %d goes on with round %d before the last was done.", self.attempt_id, round_number)
            late.stop()
        return True

    def _superseded(self, message: TrainRound) -> bool:
        return self.stopped.is_set() or self._round != message.round

    def _train(self, message: TrainRound) -> bool:
        node = self._node
        work = self._work(message)
        bytes_down = 0
        pace = Pace(PROGRESS_SECONDS)

        def say_progress() -> None:
            if pace.is_time():
                self._report("progress", message)

        def fetched(num_bytes: int) -> None:
            nonlocal bytes_down
            bytes_down += num_bytes
            say_progress()

        # Step 1: the weights, while a new runner loads its data. Before that the keys, for which all other clients wait.
        masked = node.maskings.begin(message)
        runner = self._ready_runner(work)
        with contextlib.ExitStack() as borrowed:
            weights = borrowed.enter_context(node.blobs.borrow(message.weights, self.stopped, fetched))
            memory = message.memory and borrowed.enter_context(node.blobs.borrow(message.memory, self.stopped, fetched))
            if not self._started:
                self._started = True
                self._report("started", message)

            # Step 2: train.
            update = update_file(self._folder, message.round)
            with self._lock:
                if self._superseded(message):
                    raise RunnerEnded("A newer round took over.")
                self._training = True
            epsilon = node.ledger.charge(message, runner.num_rows)
            done = runner.train_round(
                TrainCommand(
                    round=message.round,
                    weights=weights,
                    memory=memory,
                    evaluate=message.evaluate,
                    counted_round=message.counted_round,
                    update=update,
                ),
                say_progress,
            )
        with self._lock:
            if self._round == message.round:
                self._training = False

        # Step 3: deliver, and hear whether it counts.
        num_saturated = None
        if masked:
            num_saturated = masked.mask(update, num_examples=done.num_examples, num_steps=done.num_steps)
        digest = node.blobs.deliver(update, self.stopped, lambda _: say_progress())
        accepted = self._offer(message, done, digest, bytes_down, num_saturated, epsilon)
        update.unlink(missing_ok=True)
        if not accepted:
            ClientFiles(work.kept, message.client).forget(message.round)
        return accepted or self._superseded(message)

    def _offer(
        self,
        message: TrainRound,
        done: RoundDone,
        digest: str,
        bytes_down: int,
        num_saturated: int | None,
        epsilon: float | None,
    ) -> bool:
        """Offer the delivered update. Returns whether the server takes it."""
        result = done.model_dump(exclude={"kind", "round"})
        offer = UpdateOffer(
            digest=digest, bytes_down=bytes_down, num_saturated=num_saturated, epsilon=epsilon, **result
        )
        verdict = patiently(
            lambda: self._node.server.offer_update(self.attempt_id, message.round, offer),
            self.stopped,
        )
        if not verdict.accepted:
            # The server has its reason already. A runner of an attempt that is over must not sit on a slot.
            logger.warning("Attempt %d: round %d was refused: %s", self.attempt_id, message.round, verdict.reason)
        return verdict.accepted

    def _work(self, message: TrainRound) -> ClientWork:
        node = self._node
        source = node.admit(message.spec)
        return ClientWork(
            attempt_id=self.attempt_id,
            spec=message.spec,
            source=source,
            log_source=node.name,
            client=message.client,
            num_clients=message.num_clients,
            threads=node.threads,
            kept=node.home.job_state(message.job_id),
            share_label_counts=node.catalogue.shares_label_counts(source),
            share_metrics=node.catalogue.shares_metrics(source),
            environment=self._environment(message),
        )

    def _ready_runner(self, work: ClientWork) -> Runner:
        with self._lock:
            if self.stopped.is_set():
                raise RunnerEnded("The attempt was stopped.")
            if self._runner is None or self._runner.ended.is_set():
                self._runner = Runner(work, self._folder, self._node.outbox.put)
            return self._runner

    def _environment(self, message: TrainRound) -> dict[str, str]:
        wanted = message.spec.resources.gpus_per_process
        with self._lock:
            if self.stopped.is_set():  # nobody would give back what is taken from here on
                raise RunnerEnded("The attempt was stopped.")
            if wanted and not self._gpus:
                self._gpus = self._node.gpus.take(wanted)
            return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self._gpus))} if self._gpus else {}

    def _report(
        self, kind: Literal["started", "progress", "failed", "refused"], message: TrainRound, text: str = ""
    ) -> None:
        self._node.report(RunReport(attempt_id=self.attempt_id, kind=kind, round=message.round, text=text[:2000]))

"""Which attempts run on this node. Every task may come twice, late or in the wrong order, and does no harm then."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from trainer.agent.blobs import BlobProblem
from trainer.agent.distributed import DistributedAttempt
from trainer.agent.federated import FederatedAttempt
from trainer.agent.node import Node, Refused
from trainer.agent.server import PASSING, ServerRefusal
from trainer.agent.sweep import sweep_state
from trainer.federated.kept import newest_file, write_own_model
from trainer.protocol import ReceiveModel, RunRanks, RunReport, StopAttempt, TrainRound
from trainer.secure.messages import MaskUpdate, ShareKeys, UnmaskRound
from trainer.weights import NotSafetensors

logger = logging.getLogger(__name__)

REMEMBERED_STOPS = 10_000

Attempt = FederatedAttempt | DistributedAttempt


class Supervisor:
    """The attempts of one node and its slots. `on_change` is called when the set of attempts has changed."""

    def __init__(self, node: Node, on_change: Callable[[], None]) -> None:
        self._node = node
        self._on_change = on_change
        self._attempts: dict[int, Attempt] = {}
        self._stopped: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()
        self._shutting_down = threading.Event()

    @property
    def attempts(self) -> list[int]:
        """Ids of the attempts that have a runner or a task at this moment."""
        with self._lock:
            return sorted(self._attempts)

    # --- the tasks ----------------------------------------------------------------------------------------------------

    def train_round(self, message: TrainRound) -> None:
        """Train one client for one round."""

        def join(known: Attempt | None) -> FederatedAttempt | None:
            return known if isinstance(known, FederatedAttempt) else FederatedAttempt(self._node, message.attempt_id)

        with self._telling(message.attempt_id, message.round):
            attempt = self._admit(message.attempt_id, 1, message.round, join)
            if isinstance(attempt, FederatedAttempt) and not attempt.train_round(message):
                # Refused or failed: the next round, if there is one, starts a runner anew.
                attempt.stop()
                self._forget(attempt)

    def share_keys(self, message: ShareKeys) -> None:
        """Share this client's secrets of a round with its other clients."""
        with self._telling(message.attempt_id, message.round):
            self._node.maskings.share_keys(message)

    def mask_update(self, message: MaskUpdate) -> None:
        """Tell the round's task whom to mask its update with."""
        with self._telling(message.attempt_id, message.round):
            self._node.maskings.mask_update(message)

    def unmask_round(self, message: UnmaskRound) -> None:
        """Help to unmask a round's sum."""
        with self._telling(message.attempt_id, message.round):
            self._node.maskings.unmask_round(message)

    def run_ranks(self, message: RunRanks) -> None:
        """Run this node's ranks of a distributed job to their end. A second delivery is ignored."""

        def join(known: Attempt | None) -> DistributedAttempt | None:
            return None if known else DistributedAttempt(self._node, message)

        with self._telling(message.attempt_id, None):
            attempt = self._admit(message.attempt_id, message.spec.slots_per_node, None, join)
            if isinstance(attempt, DistributedAttempt):
                try:
                    attempt.run()
                finally:
                    attempt.stop()
                    self._forget(attempt)

    def stop_attempt(self, message: StopAttempt) -> None:
        """End all runners of an attempt and report it released, whether any ran or not."""
        with self._lock:
            # Remembered first: a task of this attempt that is still on its way must not start it again.
            self._stopped[message.attempt_id] = None
            while len(self._stopped) > REMEMBERED_STOPS:
                self._stopped.popitem(last=False)
            attempt = self._attempts.get(message.attempt_id)
        if attempt:
            attempt.stop()
            self._forget(attempt)
        self._node.maskings.forget(message.attempt_id)
        shutil.rmtree(self._node.home.runs / str(message.attempt_id), ignore_errors=True)
        self._node.report(RunReport(attempt_id=message.attempt_id, kind="released"))

    def receive_model(self, message: ReceiveModel) -> None:
        """Keep the final model of a job under the node's home; beside it the client's own, where that differs (FedBN).

        What clients keep from round to round stays: the job may be given more rounds.
        """
        target = self._node.home.models / f"job-{message.job_id}.safetensors"
        try:
            self._node.blobs.keep(message.weights, target, self._shutting_down)
        except (BlobProblem, ServerRefusal, OSError, *PASSING) as error:
            logger.error("The model of job %d could not be kept: %s", message.job_id, error)
            return
        kept = newest_file(self._node.home.job_state(message.job_id))
        try:
            if kept:
                write_own_model(target, kept, target.with_stem(f"{target.stem}-own"))
        except (NotSafetensors, OSError) as error:
            logger.error("The client's own model of job %d could not be written: %s", message.job_id, error)
        sweep_state(self._node.home.state)
        self._node.report(RunReport(attempt_id=message.attempt_id, kind="model_kept", text=str(target)))

    def shut_down(self) -> None:
        """End everything, side by side. Nothing starts any more."""
        self._shutting_down.set()
        with self._lock:
            attempts = list(self._attempts.values())
        stops = [threading.Thread(target=attempt.stop, daemon=True) for attempt in attempts]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()

    @contextlib.contextmanager
    def _telling(self, attempt_id: int, round_number: int | None) -> Iterator[None]:
        """Report what nobody foresaw, such as a full disk: a job must not wait for a task that broke."""
        try:
            yield
        except Exception as error:
            logger.exception("Attempt %d broke the agent's task", attempt_id)
            text = f"The agent of {self._node.name} could not go on ({error}): its log has the details."
            self._node.report(RunReport(attempt_id=attempt_id, kind="failed", round=round_number, text=text[:2000]))

    # --- the slots ----------------------------------------------------------------------------------------------------

    def _admit(
        self,
        attempt_id: int,
        slots: int,
        round_number: int | None,
        join: Callable[[Attempt | None], Attempt | None],
    ) -> Attempt | None:
        """Return the attempt to work on, or None when there is nothing to do: stopped, shutting down, or no room."""
        evicted: list[Attempt] = []
        try:
            with self._lock:
                if attempt_id in self._stopped or self._shutting_down.is_set():
                    return None
                known = self._attempts.get(attempt_id)
                attempt = join(known)
                if attempt is None or attempt is known:
                    return attempt
                evicted = self._make_room(slots)
                self._attempts[attempt_id] = attempt
        except Refused as refused:
            self._node.report(RunReport(attempt_id=attempt_id, kind="refused", round=round_number, text=str(refused)))
            return None
        for old in evicted:
            old.stop()
        self._on_change()
        return attempt

    def _make_room(self, slots: int) -> list[Attempt]:
        """Return the attempts that must go so that `slots` are free, no longer counted. Raises Refused.

        The server reserves the slots and knows best what is over: a runner that waits for a round which will not come
        (its stop was lost) makes way. What works is never disturbed.
        """
        lent = self._node.facts.slots
        used = sum(attempt.slots for attempt in self._attempts.values())
        evicted: list[Attempt] = []
        for attempt in sorted(self._attempts.values(), key=lambda a: a.used_at):
            if used + slots <= lent:
                break
            if attempt.idle:
                evicted.append(attempt)
                used -= attempt.slots
        if used + slots > lent:
            busy = ", ".join(str(attempt_id) for attempt_id in sorted(self._attempts)) or "none"
            raise Refused(
                f"{self._node.name} lends {lent} slots and the job needs {slots} (attempts at work: {busy}): "
                f"wait, or set more slots in its node.toml."
            )
        for attempt in evicted:
            del self._attempts[attempt.attempt_id]
        return evicted

    def _forget(self, attempt: Attempt) -> None:
        with self._lock:
            if self._attempts.get(attempt.attempt_id) is attempt:
                del self._attempts[attempt.attempt_id]
        self._on_change()

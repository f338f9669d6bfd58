"""The way of a simulation's rounds from rank 0's runner to the server, beside the training, which does not wait for it."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trainer.agent.blobs import BlobProblem, patiently
from trainer.agent.node import Node
from trainer.agent.server import PASSING, ServerRefusal
from trainer.protocol import Verdict
from trainer.simulation.messages import SimulatedRounds
from trainer.simulation.plan import RoundPack, SimulationPlan

logger = logging.getLogger(__name__)

POST_BYTES = 800_000
"""Of one message, as JSON; the server takes 1 MB."""
DELIVERIES = 5
"""How often a pack's files are delivered where the server has lost them meanwhile: a clone with the same seed makes equal bytes,
and may delete its own between our delivery and our post."""


class Waiting(NamedTuple):
    """A pack that is to be posted, and its size as JSON."""

    pack: RoundPack
    num_bytes: int


class RoundPoster:
    """Posts packs in order. While the server is away it asks again until it is stopped, and joins what gathers meanwhile.

    Of packs that are joined, the last one's weights alone are needed, and the files of the others go at once.
    """

    def __init__(
        self,
        node: Node,
        attempt_id: int,
        plan: SimulationPlan,
        stopped: threading.Event,
        on_problem: Callable[[], None],
    ) -> None:
        """`on_problem` is called once, by the poster's thread, when the server will not take the rounds: see `problem`."""
        self.problem = ""
        """A sentence; empty while all is well."""
        self._node = node
        self._attempt_id = attempt_id
        self._plan = plan
        self._stopped = stopped
        self._on_problem = on_problem
        self._waiting: deque[Waiting] = deque()
        self._is_finished = False
        self._changed = threading.Condition()
        """Guards the two above."""
        self._thread = threading.Thread(target=self._run, name=f"rounds-{attempt_id}", daemon=True)
        self._thread.start()

    def put(self, pack: RoundPack) -> None:
        """Post a pack soon. Never blocks."""
        new = Waiting(pack, len(pack.model_dump_json().encode()))
        with self._changed:
            if self._waiting and (joined := _join(self._waiting[-1], new)):
                self._waiting[-1] = joined
            else:
                self._waiting.append(new)
            self._changed.notify()

    def finish(self) -> None:
        """Return when everything is posted, or cannot be."""
        with self._changed:
            self._is_finished = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while first := self._take():
            try:
                self._post(first.pack)
            except PASSING as error:  # the training goes on meanwhile
                logger.warning("The server has not taken rounds of attempt %d yet: %s", self._attempt_id, error)
                self._put_back(first)
            except (BlobProblem, ServerRefusal, OSError) as error:
                self.problem = f"The rounds could not be given to the server: {error}"
                self._on_problem()
                return

    def _take(self) -> Waiting | None:
        """Return what is to be posted next, as soon as there is something; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_finished)
            return self._waiting.popleft() if self._waiting and not self._stopped.is_set() else None

    def _put_back(self, first: Waiting) -> None:
        with self._changed:
            if self._waiting and (joined := _join(first, self._waiting[0])):
                self._waiting[0] = joined
            else:
                self._waiting.appendleft(first)

    def _post(self, pack: RoundPack) -> None:
        verdict = self._offer(pack)
        for _ in range(DELIVERIES - 1):
            if not verdict.missing_bytes:
                break
            verdict = self._offer(pack)
        if not verdict.accepted:
            raise ServerRefusal(409, verdict.reason)
        # Whole or not at all: rank 0 reads it at any time.
        new = self._plan.recorded_file.with_suffix(".new")
        new.write_text(str(pack.rounds[-1].round))
        os.replace(new, self._plan.recorded_file)
        _remove(pack)

    def _offer(self, pack: RoundPack) -> Verdict:
        """Deliver the files and tell of the rounds."""
        blobs, server = self._node.blobs, self._node.server
        message = SimulatedRounds(
            rounds=pack.rounds,
            weights=blobs.deliver(pack.weights, self._stopped),
            memory=blobs.deliver(pack.memory, self._stopped) if pack.memory else None,
            label_counts=pack.label_counts,
        )
        return patiently(lambda: server.post_simulated(self._attempt_id, message), self._stopped)


def _join(first: Waiting, following: Waiting) -> Waiting | None:
    """Return both as one and remove the first one's files, or None where that is too much for a message."""
    num_bytes = first.num_bytes + following.num_bytes
    if num_bytes > POST_BYTES:
        return None
    _remove(first.pack)
    changes = {
        "rounds": [*first.pack.rounds, *following.pack.rounds],
        "label_counts": first.pack.label_counts or following.pack.label_counts,
    }
    return Waiting(following.pack.model_copy(update=changes), num_bytes)


def _remove(pack: RoundPack) -> None:
    files: list[Path | None] = [pack.weights, pack.memory]
    for file in files:
        if file:
            file.unlink(missing_ok=True)

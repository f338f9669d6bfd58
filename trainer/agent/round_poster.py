"""The way of a simulation's rounds from rank 0's runner to the server, beside the training, which does not wait for it."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from trainer.agent.blobs import BlobProblem, patiently
from trainer.agent.node import Node
from trainer.agent.server import PASSING, ServerRefusal
from trainer.simulation.messages import SimulatedRounds
from trainer.simulation.plan import RoundPack, SimulationPlan

logger = logging.getLogger(__name__)

POST_BYTES = 800_000
"""Of one message, as JSON; the server takes 1 MB."""


class RoundPoster:
    """Posts packs in order, with patience. While the server is away they are joined: of all but the last, the weights are not needed."""

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
        self._packs: queue.SimpleQueue[RoundPack | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"rounds-{attempt_id}", daemon=True)
        self._thread.start()

    def put(self, pack: RoundPack) -> None:
        """Post a pack soon. Never blocks."""
        self._packs.put(pack)

    def finish(self) -> None:
        """Return when everything is posted, or cannot be."""
        self._packs.put(None)
        self._thread.join()

    def _run(self) -> None:
        held: RoundPack | None = None
        while not self._stopped.is_set():
            pack = held or self._packs.get()
            if pack is None:
                return
            pack, held, is_last = self._join(pack)
            try:
                self._post(pack)
            except (BlobProblem, ServerRefusal, OSError, *PASSING) as error:
                self.problem = f"The rounds could not be given to the server: {error}"
                self._on_problem()
                return
            if is_last and held is None:
                return

    def _join(self, pack: RoundPack) -> tuple[RoundPack, RoundPack | None, bool]:
        """Add what has gathered meanwhile. Returns the pack, one that was too much for it, and whether the end was reached."""
        size = _size_of(pack)
        while not self._packs.empty():
            following = self._packs.get()
            if following is None:
                return pack, None, True
            size += _size_of(following)
            if size > POST_BYTES:
                return pack, following, False
            _remove(pack)
            counts = pack.label_counts or following.label_counts
            rounds = [*pack.rounds, *following.rounds]
            pack = following.model_copy(update={"rounds": rounds, "label_counts": counts})
        return pack, None, False

    def _post(self, pack: RoundPack) -> None:
        blobs, server = self._node.blobs, self._node.server
        message = SimulatedRounds(
            rounds=pack.rounds,
            weights=blobs.deliver(pack.weights, self._stopped),
            memory=blobs.deliver(pack.memory, self._stopped) if pack.memory else None,
            label_counts=pack.label_counts,
        )
        verdict = patiently(lambda: server.post_simulated(self._attempt_id, message), self._stopped)
        if not verdict.accepted:
            raise ServerRefusal(409, verdict.reason)
        # Whole or not at all: rank 0 reads it at any time.
        new = self._plan.recorded_file.with_suffix(".new")
        new.write_text(str(pack.rounds[-1].round))
        os.replace(new, self._plan.recorded_file)
        _remove(pack)


def _size_of(pack: RoundPack) -> int:
    return len(pack.model_dump_json())


def _remove(pack: RoundPack) -> None:
    files: list[Path | None] = [pack.weights, pack.memory]
    for file in files:
        if file:
            file.unlink(missing_ok=True)

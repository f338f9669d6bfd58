"""Rank 0 of a simulation, as the server hears it: packs of rounds, made by hand, with real weights in real blobs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from trainer.federated.draw import draw_clients
from trainer.protocol import RunRanks, StopAttempt, Verdict
from trainer.simulation.messages import SimulatedClient, SimulatedRound, SimulatedRounds
from trainer.weights import Weights, map_weights, pack_weights
from webapp.blobs import services as blobs
from webapp.jobs import services

SIMULATED = spec_with(FEDERATED, federated={"rounds": 5, "clients": {"simulate": 20, "per_round": 4, "num": 1}})
"""Twenty virtual clients on one node, two processes; four a round."""


@dataclass
class Simulator:
    far: FarNode
    asked: RunRanks
    base: Weights
    """The weights of its start, which the server may delete meanwhile."""
    began: int = field(default_factory=lambda: int(time.time()))
    """In Unix seconds."""

    def round(self, number: int, **changes: object) -> SimulatedRound:
        """A round as the drawn clients would give it: client k has k % 5 + 1 examples. `changes` are other values of its fields."""
        drawn = draw_clients(self.asked.spec, number)
        clients = [
            SimulatedClient(client=k, num_examples=k % 5 + 1, num_steps=1, seconds_training=0.25, loss=0.5, norm=1.0)
            for k in drawn
        ]
        metrics = {"train/loss": 1 / number, "server/loss": 2 / number, "server/accuracy": 0.9}
        facts = {"weights": [1 / len(drawn)] * len(drawn), "norms": [1.0] * len(drawn)}
        start = 1000 * (self.began + 2 * number)
        made = SimulatedRound.of(
            clients, facts=facts, round=number, opened_ms=start, closed_ms=start + 1500, metrics=metrics
        )
        return made.model_copy(update=changes)

    def weights(self, value: float = 1.0) -> str:
        """The start weights with `value` added to each of them, already on the server."""
        moved = {name: array + np.float32(value) for name, array in self.base.items()}
        return blobs.save_bytes(pack_weights(moved)).digest

    def pack(self, first: int, last: int, **changes: object) -> SimulatedRounds:
        rounds = [self.round(number) for number in range(first, last + 1)]
        fields = {"rounds": rounds, "weights": changes.get("weights") or self.weights(last), **changes}
        return SimulatedRounds.model_validate(fields)

    def post(self, offer: SimulatedRounds) -> Verdict:
        return services.record_simulated(node=self.far.node, attempt_id=self.asked.attempt_id, offer=offer)

    def start(self) -> None:
        self.far.attempts = [self.asked.attempt_id]
        self.far.beat()
        self.far.report(self.asked.attempt_id, "started")


def begin(far: FarNode) -> Simulator:
    """Take the one message of the node's queue, which sends it its ranks."""
    (message,) = [m for m in far.messages() if not isinstance(m, StopAttempt)]
    assert isinstance(message, RunRanks)
    assert message.start is not None
    return Simulator(far, message, map_weights(blobs.path_of(message.start.weights.digest)))

"""The far ends of the conductor's messages, in one process: nodes that answer, and a conductor that does what it is asked.

Every message goes through the real broker, every update through the real door, and every blob is a file.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import numpy as np
import redis

from trainer.federated.encoding import encode_update, update_shapes
from trainer.federated.names import VARIATE
from trainer.message import BlobRef, Message
from trainer.protocol import TASKS, Facts, Heartbeat, RunReport, TrainRound, UpdateOffer, Verdict
from trainer.sources import SourceSchema
from trainer.spec import JobSpec
from trainer.weights import pack_weights, read_header
from webapp.blobs import services as blobs
from webapp.fleet import services as fleet
from webapp.fleet.models import Node
from webapp.jobs import services

FEDERATED = JobSpec.model_validate(
    {
        "name": "Digits",
        "mode": "federated",
        "model": {"name": "linear"},
        "data": {"source": "digits"},
        "federated": {"rounds": 3},
    }
)
DISTRIBUTED = JobSpec.model_validate(
    {
        "name": "Digits",
        "mode": "distributed",
        "model": {"name": "linear"},
        "data": {"source": "digits"},
        "distributed": {"epochs": 4},
    }
)


def spec_with(spec: JobSpec, **changes: object) -> JobSpec:
    """The spec with other values in its sections: spec_with(FEDERATED, federated={"rounds": 1})."""
    raw = spec.model_dump(mode="json", exclude_none=True)
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return JobSpec.model_validate(raw)


def facts(slots: int = 2, sources: tuple[SourceSchema, ...] = (), public_key: str | None = None) -> Facts:
    return Facts(
        hostname="box",
        platform="Linux",
        agent_version="0.1.0",
        torch_version="2.13.0",
        python_version="3.11",
        num_cpus=2,
        memory_bytes=2**33,
        slots=slots,
        sources=list(sources),
        public_key=public_key,
    )


@dataclass
class FarNode:
    """One node's agent, as the server hears it."""

    broker: redis.Redis
    node: Node
    boot_id: str = "boot-1"
    slots: int = 2
    sources: tuple[SourceSchema, ...] = ()
    public_key: str | None = None
    attempts: list[int] = field(default_factory=list)

    def beat(self) -> None:
        heartbeat = Heartbeat(
            boot_id=self.boot_id,
            facts=facts(self.slots, self.sources, self.public_key),
            cpu_percent=1,
            memory_used_bytes=1,
            attempts=self.attempts,
        )
        fleet.record_heartbeat(node_id=self.node.pk, heartbeat=heartbeat)
        self.node.refresh_from_db()

    def vanish(self, reason: str = "its last sign came 15 s ago.") -> None:
        """Be found offline, as the fleet's sweep does it."""
        self.node.refresh_from_db()
        assert self.node.move_to(Node.State.OFFLINE, f"{self.node.name} stopped answering: {reason}")

    def messages(self) -> list[Message]:
        """Take what is in the node's own queue."""
        taken = []
        while (raw := self.broker.rpop(f"n:{self.node.pk}:tasks")) is not None:
            taken.append(_message(raw))
        return taken

    def asked(self) -> TrainRound:
        """Take the one message in the queue, which asks for a round."""
        (message,) = self.messages()
        assert isinstance(message, TrainRound)
        return message

    def update_for(self, weights: BlobRef, value: float = 0.0, spec: JobSpec = FEDERATED) -> BlobRef:
        """An update that adds `value` to every weight (and, in SCAFFOLD, to every variate), already on the server."""
        assert spec.federated is not None
        shapes = update_shapes(read_header(blobs.path_of(weights.digest)), spec.federated)
        deltas = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
        update, _ = encode_update(deltas, spec.federated.encoding, rng=np.random.default_rng(0))
        if spec.federated.strategy.name == "scaffold":
            update |= {VARIATE + name: delta for name, delta in deltas.items()}
        return blobs.save_bytes(pack_weights(update))

    def deliver(self, asked: TrainRound, *, value: float = 0.0, num_examples: int = 100, **offer: object) -> Verdict:
        """Answer a round with an update that adds `value` to every weight."""
        digest = self.update_for(asked.weights, value, asked.spec).digest
        return self.offer(asked, UpdateOffer(digest=digest, num_examples=num_examples, **offer))

    def offer(self, asked: TrainRound, offer: UpdateOffer) -> Verdict:
        return services.accept_update(
            node=self.node, attempt_id=asked.attempt_id, round_number=asked.round, offer=offer
        )

    def report(self, attempt_id: int, kind: str, text: str = "", round_number: int | None = None) -> None:
        report = RunReport(attempt_id=attempt_id, kind=kind, text=text, round=round_number)
        services.record_report(node_id=str(self.node.pk), report=report)


@dataclass
class Conductor:
    """Does what is in the conductor's queue, until it is empty."""

    broker: redis.Redis

    def work(self) -> list[str]:
        """Run every request, and those that they make. Returns the names of the tasks, in order."""
        done = []
        while (raw := self.broker.rpop("conductor")) is not None:
            message = json.loads(raw)
            name = message["headers"]["task"].rpartition(".")[2]
            args = json.loads(base64.b64decode(message["body"]))[0]
            if name == "advance_attempt":
                services.advance_attempt(attempt_id=args[0])
            else:
                {"schedule_jobs": services.schedule_jobs, "sweep_jobs": services.sweep_jobs}[name]()
            done.append(name)
        return done


def _message(raw: bytes) -> Message:
    message = json.loads(raw)
    body = json.loads(base64.b64decode(message["body"]))
    return TASKS[message["headers"]["task"]].model_validate(body[0][0])

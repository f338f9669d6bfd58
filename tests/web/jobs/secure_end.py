"""The far end of a masked round: nodes with real identities and sessions, whose posts and updates go through the real door."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from trainer.federated.encoding import update_shapes
from trainer.federated.names import VARIATE
from trainer.message import Message
from trainer.protocol import TrainRound, UpdateOffer, Verdict
from trainer.secure.agreed import terms_digest
from trainer.secure.keys import public_key
from trainer.secure.messages import MaskUpdate, ShareKeys, UnmaskRound
from trainer.secure.quantise import Quantiser
from trainer.secure.session import MaskingSession
from trainer.secure.weigh import factor_of
from trainer.weights import Weights, pack_weights, read_header
from webapp.blobs import services as blobs
from webapp.jobs import services

SECURE = spec_with(FEDERATED, federated={"rounds": 2, "clients": {"num": 4}, "secure_aggregation": {}})


@dataclass
class MaskedNode:
    """One node's agent in rounds of one attempt. `value` of its updates is what it adds to every weight."""

    far: FarNode
    value: float = 0.0
    num_examples: int = 100
    identity: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    asked: TrainRound | None = None
    session: MaskingSession | None = None
    plain: Weights = field(default_factory=dict)
    """The quantised update before its masks."""
    masked: bytes = b""

    def __post_init__(self) -> None:
        self.far.public_key = public_key(self.identity)
        self.far.beat()

    @property
    def name(self) -> str:
        return self.far.node.name

    def messages(self) -> list[Message]:
        return self.far.messages()

    def do_all(self) -> list[Verdict]:
        """Do what the messages in the queue ask for, as the agent would."""
        return [verdict for message in self.messages() if (verdict := self.do(message)) is not None]

    def do(self, message: Message) -> Verdict | None:
        match message:
            case TrainRound():
                return self.begin(message)
            case ShareKeys():
                assert self.session
                shares = self.session.seal_shares(message.roster)
                return services.accept_shares(**self.where(), shares=shares)
            case MaskUpdate():
                return self.offer(self.mask(message))
            case UnmaskRound():
                assert self.session
                answer = self.session.answer(message.survivors)
                return services.accept_unmasking(**self.where(), unmasking=answer)
        return None

    def where(self) -> dict[str, object]:
        assert self.asked
        return {"node": self.far.node, "attempt_id": self.asked.attempt_id, "round_number": self.asked.round}

    def begin(self, asked: TrainRound) -> Verdict:
        """Make new keys for the round, and post them."""
        assert asked.masking
        self.asked = asked
        self.session = MaskingSession(
            self.identity,
            node_id=str(self.far.node.pk),
            node=self.name,
            attempt_id=asked.attempt_id,
            round=asked.round,
            client=asked.client,
            terms=asked.masking,
            terms_digest=terms_digest(
                asked.spec,
                asked.masking,
                weights=asked.weights.digest,
                memory=asked.memory.digest if asked.memory else "",
            ),
        )
        return services.accept_keys(**self.where(), keys=self.session.public_keys())

    def mask(self, message: MaskUpdate) -> int:
        """Mask the update with all who shared. Returns how many of its elements were cut."""
        asked, session = self.asked, self.session
        assert asked
        assert session
        federated = asked.spec.federated
        assert federated
        assert federated.secure_aggregation
        assert asked.masking
        session.take_shares(message.sealed)
        shapes = update_shapes(read_header(blobs.path_of(asked.weights.digest)), federated)
        if federated.strategy.name == "scaffold":
            shapes = {**shapes, **{VARIATE + name: shape for name, shape in shapes.items()}}
        delta = {name: np.full(shape, self.value, np.float32) for name, shape in shapes.items()}
        factor = factor_of(asked.spec, asked.masking, client=asked.client, num_examples=self.num_examples, num_steps=4)
        quantiser = Quantiser(asked.masking, federated.secure_aggregation.clip)
        update, num_saturated = quantiser.encode(delta, factor)
        self.plain = {name: values.copy() for name, values in update.items()}
        session.mask(update)
        self.masked = pack_weights(update)
        return num_saturated

    def offer(self, num_saturated: int | None = 0, *, num_steps: int = 4) -> Verdict:
        assert self.asked
        digest = blobs.save_bytes(self.masked).digest
        offer = UpdateOffer(
            digest=digest, num_examples=self.num_examples, num_steps=num_steps, num_saturated=num_saturated
        )
        return self.far.offer(self.asked, offer)

"""The other clients of a securely aggregated round, and its server, around one agent under test: client 0."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from trainer.protocol import TrainRound
from trainer.secure.agreed import terms_digest
from trainer.secure.messages import (
    MaskingTerms,
    MaskUpdate,
    PublicKeys,
    SealedShares,
    ShareKeys,
    Unmasking,
    UnmaskRound,
)
from trainer.secure.prg import Ring
from trainer.secure.session import MaskingSession
from trainer.spec import JobSpec

PEERS = (1, 2)
TERMS = MaskingTerms(threshold=2, num_clients=3, max_examples=2000)


def secure_spec(*, local_epochs: int = 1, **changes: Any) -> JobSpec:
    federated = {
        "rounds": 3,
        "local_epochs": local_epochs,
        "clients": {"num": 3},
        "secure_aggregation": {"clip": 2.0, "threshold": 0.51},
        **changes.pop("federated", {}),
    }
    return federated_spec(federated=federated, **changes)


class Peers:
    """Two more clients, whose identities last, and what a server does between all three."""

    def __init__(self, agent: AgentUnderTest, far_end: FarEnd) -> None:
        self.agent = agent
        self.far_end = far_end
        self._prefix = uuid.uuid4().hex  # other tests' peers are pinned by the same agent
        self.identities = {client: Ed25519PrivateKey.generate() for client in PEERS}

    def begin(self, attempt_id: int, number: int = 1, *, spec: JobSpec | None = None, **changes: Any) -> MaskedJob:
        return MaskedJob(self, attempt_id, number, spec or secure_spec(), changes)

    def node_id(self, client: int) -> str:
        return f"{self._prefix}-{client}"

    def name(self, client: int) -> str:
        return f"peer-{client}-{self._prefix}"


class MaskedJob:
    """One round, from the task that begins it to the sum."""

    def __init__(self, peers: Peers, attempt_id: int, number: int, spec: JobSpec, changes: dict[str, Any]) -> None:
        self.far_end, self.agent = peers.far_end, peers.agent
        self.attempt_id, self.number = attempt_id, number
        weights = self.far_end.add_blob(weights_for(spec))
        self.sessions = {
            client: MaskingSession(
                peers.identities[client],
                node_id=peers.node_id(client),
                node=peers.name(client),
                attempt_id=attempt_id,
                round=number,
                client=client,
                terms=TERMS,
                terms_digest=terms_digest(spec, TERMS, weights=weights.digest, memory=""),
            )
            for client in PEERS
        }
        self.message = TrainRound(
            **{
                "job_id": 1,
                "attempt_id": attempt_id,
                "round": number,
                "spec": spec,
                "client": 0,
                "num_clients": 3,
                "weights": weights,
                "masking": TERMS,
                **changes,
            }
        )
        self.agent.send(self.message)

    def posted(self, which: str) -> list[dict[str, Any]]:
        return [body for *key, body in self.far_end.posts if key == [which, self.attempt_id, self.number]]

    def offers(self) -> list[dict[str, Any]]:
        return [body for *key, body in self.far_end.updates if key == [self.attempt_id, self.number]]

    def keys(self) -> PublicKeys:
        """The agent's."""
        return PublicKeys.model_validate(eventually(lambda: self.posted("keys"))[-1])

    def roster(self) -> list[PublicKeys]:
        return [self.keys(), *(session.public_keys() for session in self.sessions.values())]

    def share(self, roster: list[PublicKeys] | None = None) -> None:
        """Show all clients the roster; the agent's shares come back."""
        roster = roster or self.roster()
        self.boxes = {client: session.seal_shares(roster) for client, session in self.sessions.items()}
        self.agent.send(self.shown(roster))
        self.boxes[0] = SealedShares.model_validate(eventually(lambda: self.posted("shares"))[-1])

    def shown(self, roster: list[PublicKeys]) -> ShareKeys:
        return ShareKeys(attempt_id=self.attempt_id, round=self.number, roster=roster)

    def sealed_for(self, client: int) -> dict[int, str]:
        return {sender: boxes.sealed[client] for sender, boxes in self.boxes.items() if sender != client}

    def tell(self, **changed: str) -> None:
        """Give each client what the others sealed for it, or `changed`, such as {"1": ""}; the agent's masked update comes."""
        for client, session in self.sessions.items():
            session.take_shares(self.sealed_for(client))
        sealed = self.sealed_for(0) | {int(client): box for client, box in changed.items()}
        self.agent.send(MaskUpdate(attempt_id=self.attempt_id, round=self.number, sealed=sealed))

    def update(self) -> dict[str, Ring]:
        """The agent's, masked."""
        return load(self.far_end.blobs[eventually(self.offers)[-1]["digest"]])

    def ask(self, survivors: list[int]) -> None:
        self.agent.send(UnmaskRound(attempt_id=self.attempt_id, round=self.number, survivors=survivors))

    def answer(self, survivors: list[int]) -> Unmasking:
        self.ask(survivors)
        return Unmasking.model_validate(eventually(lambda: self.posted("unmasking"))[-1])

    def peers_updates(self, like: dict[str, Ring]) -> dict[int, dict[str, Ring]]:
        """What the other clients deliver: updates of zeros, masked."""
        updates = {client: {name: np.zeros_like(values) for name, values in like.items()} for client in PEERS}
        for client, session in self.sessions.items():
            session.mask(updates[client])
        return updates

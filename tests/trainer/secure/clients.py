"""Rounds of secure aggregation by hand: sessions of many clients, and what becomes of their updates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trainer.secure.messages import MaskingTerms, PublicKeys, Unmasking
from trainer.secure.prg import Ring
from trainer.secure.session import MaskingSession
from trainer.secure.unmask import unmasked_sum
from trainer.weights import write_weights

ATTEMPT, ROUND = 7, 3


def terms(num: int, threshold: int | None = None, max_examples: int = 100) -> MaskingTerms:
    """The terms of `num` clients; by default more than half of them are needed."""
    return MaskingTerms(threshold=threshold or num // 2 + 1, num_clients=num, max_examples=max_examples)


DIGEST = "0" * 64
"""What clients of these rounds were told of them."""


def session(
    client: int, given: MaskingTerms, identity: Ed25519PrivateKey | None = None, terms_digest: str = DIGEST
) -> MaskingSession:
    return MaskingSession(
        identity or Ed25519PrivateKey.generate(),
        node_id=f"id-{client}",
        node=f"node-{client}",
        attempt_id=ATTEMPT,
        round=ROUND,
        client=client,
        terms=given,
        terms_digest=terms_digest,
    )


def random_updates(num: int, seed: int) -> list[dict[str, Ring]]:
    """Quantised updates of two tensors, the second without dimensions."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> Ring:
        return rng.integers(0, 2**32, shape, dtype=np.uint32)

    return [{"w": draw((5, 9)), "b": np.array(draw(()))} for _ in range(num)]


@dataclass
class MaskedRound:
    """One round: who posts keys, who shares, whose update is in. The server's side is what it would hold."""

    terms: MaskingTerms
    keyed: Collection[int]
    shared: Collection[int]
    sessions: dict[int, MaskingSession] = field(init=False)
    roster: list[PublicKeys] = field(init=False)
    boxes: dict[int, Mapping[int, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = {client: session(client, self.terms) for client in self.keyed}
        self.roster = [each.public_keys() for each in self.sessions.values()]
        self.boxes = {client: self.sessions[client].seal_shares(self.roster).sealed for client in self.shared}
        for client in self.shared:
            self.sessions[client].take_shares(self.sealed_for(client))

    def sealed_for(self, client: int) -> dict[int, str]:
        return {sender: boxes[client] for sender, boxes in self.boxes.items() if sender != client}

    def deliver(self, folder: Path, client: int, update: Mapping[str, Ring]) -> Path:
        masked = {name: values.copy() for name, values in update.items()}
        self.sessions[client].mask(masked)
        path = folder / f"masked-{client}.safetensors"
        write_weights(path, masked)
        return path

    def answers(self, survivors: Collection[int], answering: Collection[int]) -> list[Unmasking]:
        return [self.sessions[client].answer(sorted(survivors)) for client in answering]

    def unmask(self, paths: Mapping[int, Path], answers: list[Unmasking]) -> dict[str, Ring]:
        return unmasked_sum(paths, self.roster, set(self.shared), sorted(paths), answers, self.terms)


def plain_sum(updates: list[dict[str, Ring]], clients: Collection[int]) -> dict[str, Ring]:
    """What the masks must leave: the sum in Z_2^32."""
    return {name: np.add.reduce([updates[client][name] for client in clients], dtype=np.uint32) for name in updates[0]}

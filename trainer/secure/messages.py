"""The messages of secure aggregation, in the order of the protocol's rounds (Bonawitz et al. 2017, figure 4).

Server to agent they are Celery tasks, agent to server posts under /node/v1; each may come twice.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.message import Digest, Key, Message, Sealed


class MaskingTerms(Message):
    """What the clients of a securely aggregated round must agree on."""

    threshold: int = Field(ge=2)
    """Clients without whom nothing can be unmasked: t of Shamir's t of n."""
    num_clients: int = Field(ge=3)
    """Clients asked: bounds the sum, and so the step of the quantisation."""
    max_examples: int = Field(ge=1)
    """Most training rows that a client may have: an update weighs its rows over these."""


class PublicKeys(Message):
    """One client's keys for one round (Bonawitz et al. 2017, round 0), signed by its node's lasting key."""

    client: int = Field(ge=0)
    node_id: Annotated[str, Field(max_length=64)]
    node: Annotated[str, Field(max_length=63)]
    """The node's name, for people: pins go by node_id, and no other node may take a pinned one's name."""
    identity: Key
    """The node's Ed25519 key, which does not change; its fingerprint is shown on the node's page."""
    sealing: Key
    """X25519: what other clients encrypt shares to."""
    masking: Key
    """X25519: what pairwise masks are agreed from."""
    terms_digest: Digest
    """Of what the client was told of the round (`trainer.secure.agreed.terms_digest`): all must have been told the same."""
    signature: Sealed
    """Ed25519 by `identity` over all of these, attempt and round (`trainer.secure.keys.signed_bytes`)."""


class ShareKeys(Message):
    """Task `trainer.share_keys`: the round's clients and their keys (round 1). The agent checks signatures and pins, and posts shares."""

    attempt_id: int
    round: int = Field(ge=1)
    roster: list[PublicKeys] = Field(max_length=10_000)


class MaskUpdate(Message):
    """Task `trainer.mask_update`: who has shared, with the shares that they sealed for this client (round 2). Masks are among these."""

    attempt_id: int
    round: int = Field(ge=1)
    sealed: dict[int, Sealed]
    """Client index, this one's excepted -> its sealed shares for this client."""


class UnmaskRound(Message):
    """Task `trainer.unmask_round`: whose updates are in (round 4). The agent posts its shares of their self masks, and of the
    masking keys of those who have shared and are not in; never both of one client."""

    attempt_id: int
    round: int = Field(ge=1)
    survivors: list[int] = Field(max_length=10_000)


class SealedShares(Message):
    """POST /node/v1/attempts/<id>/rounds/<n>/shares -> Verdict: one client's shares, each sealed for another client."""

    client: int
    sealed: dict[int, Sealed]
    """Client index -> bytes that only that client can open."""


class Unmasking(Message):
    """POST /node/v1/attempts/<id>/rounds/<n>/unmasking -> Verdict: one client's answer to `UnmaskRound`."""

    client: int
    self_masks: dict[int, Sealed]
    """Survivor -> this client's share of its self mask's seed. Those are left out whose sealed shares could not be opened."""
    masking_keys: dict[int, Sealed]
    """Client that dropped out after sharing -> this client's share of its masking key, likewise."""

"""One client of one securely aggregated round: its secrets, and every answer that it gives (Bonawitz et al. 2017, figure 4).

The secrets live in this object's memory alone: an agent that starts anew is out of the round. Each step may be asked for
twice in the same words, and gives the same answer; in other words it is refused, since two answers together could show what
one hides. Raises `NotSafe`, a sentence for the job's page.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trainer.secure.keys import BadKeys, agree, sign_keys, verify
from trainer.secure.messages import MaskingTerms, PublicKeys, SealedShares, Unmasking
from trainer.secure.prg import KEY_BYTES, Mask, Ring, add_masks
from trainer.secure.shamir import SHARE_BYTES, split
from trainer.secure.unmask import pairwise_mask

_SEAL_PURPOSE = b"trainmaster secure aggregation sealed shares v1"
_NONCE_BYTES = 12
MIN_CLIENTS = 3
"""Of the sum of two updates, each client takes its own away and sees the other's."""


class NotSafe(ValueError):
    """What the server asks for could show a single update. The text is a sentence."""


class MaskingSession:
    """Not safe to use from two threads at once: the caller sees to that."""

    def __init__(
        self,
        identity: Ed25519PrivateKey,
        *,
        node_id: str,
        node: str,
        attempt_id: int,
        round: int,
        client: int,
        terms: MaskingTerms,
        terms_digest: str,
    ) -> None:
        """`terms_digest` is that of all that this client was told of the round (`trainer.secure.agreed`)."""
        self._terms_digest = terms_digest
        self._identity, self._node_id, self._node = identity, node_id, node
        self._attempt_id, self._round, self._client, self._terms = attempt_id, round, client, terms
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._self_mask = secrets.token_bytes(KEY_BYTES)
        self._keys: PublicKeys | None = None
        self._roster: dict[int, PublicKeys] = {}
        self._pairs: dict[int, Mask] = {}
        self._posted: SealedShares | None = None
        self._sealed: dict[int, str] | None = None
        self._held: dict[int, tuple[bytes, bytes]] = {}  # client -> our share of its (self mask, masking key)
        self._has_masked = False
        self._answer: tuple[frozenset[int], Unmasking] | None = None

    # --- round 0: keys ------------------------------------------------------------------------------------------------

    def public_keys(self) -> PublicKeys:
        """Return this client's signed keys, the same at each call."""
        if self._keys is None:
            self._keys = sign_keys(
                self._identity,
                attempt_id=self._attempt_id,
                round=self._round,
                client=self._client,
                node_id=self._node_id,
                node=self._node,
                sealing=self._sealing,
                masking=self._masking,
                terms_digest=self._terms_digest,
            )
        return self._keys

    # --- round 1: shares ----------------------------------------------------------------------------------------------

    def check_roster(self, roster: Sequence[PublicKeys]) -> None:
        """Raise NotSafe, or BadKeys, unless these clients may share secrets. Whether their identities are known is not looked at."""
        number, num, threshold = self._round, len(roster), self._terms.threshold
        if num < MIN_CLIENTS:
            raise NotSafe(
                f"Round {number} has {num} clients left: each could take its own update from the sum and see another's. Masks need "
                f"{MIN_CLIENTS}."
            )
        if not num / 2 < threshold <= num:
            raise NotSafe(
                f"The server wants {threshold} of {num} clients to unmask round {number}: it must be more than half, or two halves "
                "could each give away a part of the same secret, and no more than all."
            )
        if num > self._terms.num_clients:
            raise NotSafe(
                f"The server shows {num} clients of round {number} and had said {self._terms.num_clients}: their sum could overflow."
            )
        for what, values in (
            ("client number", [each.client for each in roster]),
            ("node", [each.node_id for each in roster]),
            ("identity", [each.identity for each in roster]),
            ("name", [each.node for each in roster]),
        ):
            if len(set(values)) < num:
                raise NotSafe(f"Two clients of round {number} have the same {what}: each must be a node of its own.")
        own = next((each for each in roster if each.client == self._client), None)
        if own != self.public_keys():
            raise NotSafe(f"The server shows other keys of {self._node} for round {number} than {self._node} has sent.")
        for each in roster:
            verify(each, attempt_id=self._attempt_id, round=number)
            if each.terms_digest != self._terms_digest:
                raise NotSafe(
                    f"{each.node} was told other things of round {number} than {self._node} (the job, how updates are weighed, or the "
                    "weights), so that the sum could show a single update: if both run the same version of Trainmaster, trust this "
                    "server no more."
                )

    def seal_shares(self, roster: Sequence[PublicKeys]) -> SealedShares:
        """Return shares of this client's two secrets, sealed for each other client of the roster, which is fixed from here on."""
        given = {each.client: each for each in roster}
        if self._posted is not None:
            if given != self._roster:
                raise NotSafe(
                    f"The server shows a second list of clients for round {self._round}: shares were made already."
                )
            return self._posted
        self.check_roster(roster)
        self._pairs = {client: self._pair(peer) for client, peer in given.items() if client != self._client}
        masks = split(self._self_mask, self._terms.threshold, given)
        keys = split(self._masking.private_bytes_raw(), self._terms.threshold, given)
        sealed = {
            client: self._seal(peer, masks[client] + keys[client])
            for client, peer in given.items()
            if client != self._client
        }
        self._held[self._client] = (masks[self._client], keys[self._client])
        self._roster = given
        self._posted = SealedShares(client=self._client, sealed=sealed)
        return self._posted

    def _seal(self, peer: PublicKeys, plain: bytes) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        box = self._box(peer).encrypt(nonce, plain, self._label(self._client, peer.client))
        return b64encode(nonce + box).decode()

    def _box(self, peer: PublicKeys) -> AESGCM:
        try:
            return AESGCM(agree(self._sealing, peer.sealing, _SEAL_PURPOSE))
        except ValueError:
            raise self._unusable(peer) from None

    def _pair(self, peer: PublicKeys) -> Mask:
        try:
            return pairwise_mask(self._client, self._masking, peer)
        except ValueError:
            raise self._unusable(peer) from None

    def _unusable(self, peer: PublicKeys) -> BadKeys:
        return BadKeys(f"The keys of {peer.node} for round {self._round} are not usable: its agent is broken.")

    def _label(self, sender: int, receiver: int) -> bytes:
        """Authenticated beside a sealed share, so that none passes for another's."""
        return f"{self._attempt_id} {self._round} {sender} {receiver}".encode()

    # --- round 2: masks -----------------------------------------------------------------------------------------------

    def take_shares(self, sealed: Mapping[int, str]) -> list[str]:
        """Take the shares that the other clients sealed for this one. Those clients, and this one, are who masks.

        One whose shares cannot be opened masks as well: of its secrets this client just holds nothing, and others do. Returns
        a sentence on each such client.
        """
        if self._posted is None:
            raise NotSafe(f"The server sends shares of round {self._round} before the round's keys.")
        if self._sealed is not None:
            if dict(sealed) != self._sealed:
                raise NotSafe(f"The server sends other shares of round {self._round} than before.")
            return []
        if self._client in sealed or not sealed.keys() <= self._roster.keys():
            raise NotSafe(f"The server sends shares of clients that are not among the others of round {self._round}.")
        if len(sealed) + 1 < max(self._terms.threshold, MIN_CLIENTS):
            raise NotSafe(
                f"Only {len(sealed) + 1} clients of round {self._round} have shared, and {self._terms.threshold} are needed to unmask."
            )
        opened = {client: self._open(self._roster[client], box) for client, box in sealed.items()}
        self._held |= {client: shares for client, shares in opened.items() if shares is not None}
        self._sealed = dict(sealed)
        return [
            f"The shares of {self._roster[client].node} for {self._node} in round {self._round} cannot be opened, and {self._node} "
            "goes on without them: somebody has changed them on their way, or its agent is broken."
            for client, shares in sorted(opened.items())
            if shares is None
        ]

    def _open(self, peer: PublicKeys, sealed: str) -> tuple[bytes, bytes] | None:
        try:
            raw = b64decode(sealed, validate=True)
            plain = self._box(peer).decrypt(
                raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], self._label(peer.client, self._client)
            )
        except (InvalidTag, ValueError):
            return None
        if len(plain) != 2 * SHARE_BYTES:
            return None
        return plain[:SHARE_BYTES], plain[SHARE_BYTES:]

    def mask(self, update: dict[str, Ring]) -> None:
        """Add this client's masks to its quantised update, in place. Once in a round: they hide one update only."""
        if self._sealed is None:
            raise NotSafe(f"There is nobody to mask round {self._round} with: no shares are here.")
        if self._has_masked:
            raise NotSafe(f"The masks of round {self._round} have been used: they hide one update only.")
        self._has_masked = True
        add_masks(update, [Mask(self._self_mask, 1), *(self._pairs[client] for client in sorted(self._sealed))])

    # --- round 4: unmasking -------------------------------------------------------------------------------------------

    def answer(self, survivors: Sequence[int]) -> Unmasking:
        """Return this client's shares of the survivors' self masks, and of the masking keys of those that dropped out, as far as
        it holds them.

        For one set of survivors alone: of a client of which the server had both kinds of share from `threshold` clients it
        could read the update.
        """
        asked = frozenset(survivors)
        if self._answer is not None:
            if asked != self._answer[0]:
                raise NotSafe(f"The server asks to unmask round {self._round} for a second set of clients.")
            return self._answer[1]
        if not self._has_masked or self._client not in asked:
            raise NotSafe(f"The server asks {self._node} to unmask round {self._round}, in which its update is not.")
        assert self._sealed is not None  # it has masked
        if not asked <= {self._client, *self._sealed}:
            raise NotSafe(f"The server asks to unmask clients of round {self._round} that have not shared their masks.")
        if len(asked) < max(self._terms.threshold, MIN_CLIENTS):
            raise NotSafe(
                f"The server asks to unmask the sum of {len(asked)} clients of round {self._round}, and it must be "
                f"{max(self._terms.threshold, MIN_CLIENTS)} at least."
            )
        shares = {client: [b64encode(share).decode() for share in pair] for client, pair in self._held.items()}
        answer = Unmasking(
            client=self._client,
            self_masks={client: shares[client][0] for client in sorted(self._held.keys() & asked)},
            masking_keys={client: shares[client][1] for client in sorted(self._held.keys() - asked)},
        )
        self._answer = (asked, answer)
        self._held.clear()  # nothing else of them is ever to be said
        return answer

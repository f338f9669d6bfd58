"""Who speaks in a securely aggregated round: lasting Ed25519 identities, and the X25519 keys of one round that they sign.

All keys travel as their 32 raw bytes in base64 (`trainer.message.Key`).
"""

from __future__ import annotations

import hashlib
import struct
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trainer.secure.messages import PublicKeys

_SIGNED = b"trainmaster secure aggregation keys v1"


class BadKeys(ValueError):
    """A client's keys may not be used. The text is a sentence that names its node."""


def fingerprint(key: str) -> str:
    """Return what people compare of a public key: the first 128 bits of its SHA-256, as 8 groups of 4 hexadecimal digits."""
    digest = hashlib.sha256(b64decode(key)).hexdigest()
    return ":".join(digest[start : start + 4] for start in range(0, 32, 4))


def public_key(private: Ed25519PrivateKey | X25519PrivateKey) -> str:
    """Return the public half, as it travels."""
    return b64encode(private.public_key().public_bytes_raw()).decode()


def signed_bytes(
    attempt_id: int, round: int, client: int, node_id: str, node: str, sealing: str, masking: str, terms_digest: str
) -> bytes:
    """Return what an identity signs: keys of one client, of one round, and on which terms. No two lists of arguments give the
    same bytes."""
    parts = [_SIGNED, struct.pack(">QQQ", attempt_id, round, client), node_id.encode(), node.encode()]
    parts += [b64decode(sealing), b64decode(masking), bytes.fromhex(terms_digest)]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def sign_keys(
    identity: Ed25519PrivateKey,
    *,
    attempt_id: int,
    round: int,
    client: int,
    node_id: str,
    node: str,
    sealing: X25519PrivateKey,
    masking: X25519PrivateKey,
    terms_digest: str,
) -> PublicKeys:
    """Return a client's keys for one round, signed by its node's identity."""
    said = {
        "node_id": node_id,
        "node": node,
        "sealing": public_key(sealing),
        "masking": public_key(masking),
        "terms_digest": terms_digest,
    }
    signature = identity.sign(signed_bytes(attempt_id, round, client, **said))
    return PublicKeys(
        client=client,
        identity=public_key(identity),
        signature=b64encode(signature).decode(),
        **said,
    )


def verify(keys: PublicKeys, *, attempt_id: int, round: int) -> None:
    """Raise BadKeys unless the identity in `keys` has signed them for this round of this attempt.

    Whether that identity is the node's own, the caller knows: the server from its row, a node from its pins.
    """
    said = keys.model_dump(include={"client", "node_id", "node", "sealing", "masking", "terms_digest"})
    signed = signed_bytes(attempt_id, round, **said)
    try:
        Ed25519PublicKey.from_public_bytes(b64decode(keys.identity)).verify(b64decode(keys.signature), signed)
    except (InvalidSignature, ValueError):
        raise BadKeys(
            f"The keys of {keys.node} for round {round} do not carry the signature of its identity "
            f"({fingerprint(keys.identity)}): somebody has changed them on their way, or its agent is broken."
        ) from None


def agree(own: X25519PrivateKey, theirs: str, purpose: bytes) -> bytes:
    """Return 32 bytes that only both ends know: HKDF-SHA256 (RFC 5869) of the X25519 secret (RFC 7748).

    `purpose` keeps uses apart. Raises ValueError where `theirs` is no usable key (a point of low order).
    """
    secret = own.exchange(X25519PublicKey.from_public_bytes(b64decode(theirs)))
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)

"""The node's lasting key: Ed25519, made once, and known to other nodes by its public half."""

from __future__ import annotations

import os

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from trainer.agent.home import AgentError, Home


def load_signing_key(home: Home) -> Ed25519PrivateKey:
    """Return the key in `<home>/signing.pem`, made at the first call. Raises AgentError where the file is no such key."""
    file = home.path / "signing.pem"
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        return _make(home)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise AgentError(
            f"{file} cannot be read as this node's key: bring it back from a backup. Without it, remove it; a new one is made, and the "
            "owners of other nodes must forget the old one before they aggregate securely with this node."
        )
    return key


def _make(home: Home) -> Ed25519PrivateKey:
    """Readable by its owner only from the first byte on, and never half written."""
    key = Ed25519PrivateKey.generate()
    new = home.path / "signing.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        f.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        f.flush()
        os.fsync(f.fileno())
    new.replace(home.path / "signing.pem")
    return key

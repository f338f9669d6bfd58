"""What all clients of a securely aggregated round must have been told alike, so that each can hold the server to it."""

from __future__ import annotations

import hashlib
import json
import math

from trainer.secure.messages import MaskingTerms
from trainer.spec import JobSpec


def threshold_of(share: float, num_clients: int) -> int:
    """Clients of `num_clients` without whom nothing can be unmasked: more than `share` of them, or all."""
    return min(num_clients, math.floor(share * num_clients) + 1)


def terms_digest(spec: JobSpec, terms: MaskingTerms, *, weights: str, memory: str) -> str:
    """Return the SHA-256 of a round's job, terms, and the digests of its weights and memory (empty: none), as canonical JSON.

    Each client signs that of what it was sent. A server could otherwise let one client weigh its rows over far fewer than the
    others do theirs: their updates would round to nothing, and the sum would be that one's.
    """
    told = {
        "spec": spec.model_dump(mode="json"),
        "terms": terms.model_dump(mode="json"),
        "weights": weights,
        "memory": memory,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

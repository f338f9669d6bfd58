"""Who takes part in a round. Torch-free; the server and simulations draw alike."""

from __future__ import annotations

import random

from trainer.federated.privacy import poisson_draw
from trainer.spec import JobSpec


def draw_clients(spec: JobSpec, number: int) -> list[int]:
    """Return the indices of the clients of round `number`, ascending.

    The seed and the number decide alone. Not so under privacy, where each client is in or out by itself and by the operating
    system's randomness: the guarantee counts on nobody knowing from the spec who took part.
    """
    federated = spec.federated
    assert federated is not None
    clients = federated.clients
    if federated.privacy is not None and clients.num_drawn < clients.total:
        return poisson_draw(clients)
    # Seeded by text: Python hashes it by SHA-512, the same on every machine and version.
    return sorted(random.Random(f"clients {spec.seed} {number}").sample(range(clients.total), clients.num_drawn))

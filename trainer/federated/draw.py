"""Who takes part in a round. Torch-free; the server and simulations draw alike."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from trainer.federated.privacy import poisson_draw
from trainer.sections.clients import Clients
from trainer.spec import JobSpec


def draw_clients(spec: JobSpec, number: int, labels: Mapping[int, Collection[str]] | None = None) -> list[int]:
    """Return the indices of the clients of round `number`, ascending.

    `labels` are those of each client's node, by index, where the spec draws by label: of each label its share is drawn, or as
    many as carry it. Else the seed and the number decide alone. Not so under privacy, where each client is in or out by itself and by the operating
    system's randomness: the guarantee counts on nobody knowing from the spec who took part.
    """
    federated = spec.federated
    assert federated is not None
    clients = federated.clients
    if federated.privacy is not None and clients.num_drawn < clients.total:
        return poisson_draw(clients)
    # Seeded by text: Python hashes it by SHA-512, the same on every machine and version.
    rng = random.Random(f"clients {spec.seed} {number}")
    if not clients.draw_labels:
        return sorted(rng.sample(range(clients.total), clients.num_drawn))
    groups = group_by_label(labels or {}, clients.draw_labels)
    shares = label_shares(clients)
    return sorted(
        client for label, group in groups.items() for client in rng.sample(group, min(shares[label], len(group)))
    )


def label_shares(clients: Clients) -> dict[str, int]:
    """Return how many clients of each label a round draws: evenly many, and what is left over from the first labels on."""
    each, left = divmod(clients.num_drawn, max(1, len(clients.draw_labels)))
    return {label: each + (place < left) for place, label in enumerate(clients.draw_labels)}


def group_by_label(labels: Mapping[int, Collection[str]], wanted: Sequence[str]) -> dict[str, list[int]]:
    """Return the clients of each wanted label, ascending. One whose node carries several counts for the first of them."""
    groups: dict[str, list[int]] = {label: [] for label in wanted}
    for client in sorted(labels):
        if found := next((label for label in wanted if label in labels[client]), None):
            groups[found].append(client)
    return groups

"""Under which names a node may report points and logs of an attempt: nobody forges another's curve."""

from __future__ import annotations

from trainer.simulation.messages import MOST_CURVES
from webapp.telemetry.series import AGGREGATE

_SERVERS_OWN = frozenset([AGGREGATE, "server"])
"""What the server measures itself: a node may be called like it."""


def sources_of(name: str, index: int, slots: int, mode: str, simulate: int | None) -> frozenset[str]:
    """Return the sources of a node called `name` that holds `slots` slots as client or group `index` of a job.

    A client reports under its node's name, a rank under its number. Rank 0 of a simulation of `simulate` clients tells of
    their mean, and of each of a few.
    """
    if mode == "federated" and simulate is None:
        return frozenset([name]) - _SERVERS_OWN
    ranks = [f"rank {index * slots + number}" for number in range(slots)]
    if simulate is None or index > 0:
        return frozenset(ranks)
    clients = [f"client {client}" for client in range(simulate)] if simulate <= MOST_CURVES else []
    return frozenset([*ranks, AGGREGATE, *clients])

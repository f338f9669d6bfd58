"""Which rank trains which of a round's clients. Pure: all ranks come to the same answer, and nobody has to send it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def share_out(
    costs: Mapping[int, int], num_ranks: int, ranks_per_node: int, *, bound_to_nodes: bool
) -> list[list[int]]:
    """Return each rank's clients, those that cost most first. `costs` are optimizer steps by client.

    The longest go first, each to the rank with the least to do (Graham 1969), ties to the lower rank: at most a third longer than
    the best sharing. `bound_to_nodes`: client k stays on node k modulo the number of nodes, where lies what it keeps.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    num_nodes = num_ranks // ranks_per_node
    homes = range(num_nodes) if bound_to_nodes else [None]
    for home in homes:
        ranks = range(num_ranks) if home is None else range(home * ranks_per_node, (home + 1) * ranks_per_node)
        loads = [(0, rank) for rank in ranks]
        clients = [client for client in costs if home is None or client % num_nodes == home]
        for client in sorted(clients, key=lambda client: (-costs[client], client)):
            load, rank = loads[0]
            shares[rank].append(client)
            heapq.heapreplace(loads, (load + costs[client], rank))
    return shares

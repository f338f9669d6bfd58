"""Who trains which clients: everybody exactly one, evenly by steps, and keepers at home."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.simulation.share_out import share_out


@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    nodes=st.integers(1, 4),
    per_node=st.integers(1, 4),
    bound=st.booleans(),
)
def test_every_client_is_trained_once(steps: list[int], nodes: int, per_node: int, bound: bool) -> None:
    costs = {client * 3: cost for client, cost in enumerate(steps)}
    shares = share_out(costs, nodes * per_node, per_node, bound_to_nodes=bound)
    assert sorted(client for share in shares for client in share) == sorted(costs)
    if bound:
        assert all(client % nodes == rank // per_node for rank, share in enumerate(shares) for client in share)
    else:
        loads = [sum(costs[client] for client in share) for share in shares]
        assert max(loads) - min(loads) <= max(steps)


def test_the_longest_go_first_and_ties_to_the_lower_rank() -> None:
    assert share_out({4: 2, 7: 5, 9: 2, 11: 3}, 2, 2, bound_to_nodes=False) == [[7, 9], [11, 4]]
    assert share_out({4: 2, 7: 2}, 4, 2, bound_to_nodes=False) == [[4], [7], [], []]

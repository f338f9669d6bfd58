from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.partition import partition_rows
from trainer.sections.data import DirichletPartition, IidPartition, Partition, ShardsPartition

schemes = st.one_of(
    st.just(IidPartition(scheme="iid")),
    st.builds(ShardsPartition, scheme=st.just("shards"), shards_per_client=st.integers(1, 5)),
    st.builds(DirichletPartition, scheme=st.just("dirichlet"), alpha=st.floats(0, 1000, exclude_min=True)),
)


@given(
    scheme=schemes,
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_disjoint_covering_and_nobody_empty(scheme: Partition, labels: list[int], share: float, seed: int) -> None:
    num_clients = max(1, int(share * len(labels)))
    parts = partition_rows(scheme, np.array(labels), num_clients, seed)
    assert len(parts) == num_clients
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    again = partition_rows(scheme, np.array(labels), num_clients, seed)
    assert all((part == same).all() for part, same in zip(parts, again, strict=True))


def test_iid_is_even_and_follows_the_seed() -> None:
    labels = np.zeros(10)
    parts = partition_rows(IidPartition(scheme="iid"), labels, 3, seed=0)
    assert [len(part) for part in parts] == [4, 3, 3]
    other = partition_rows(IidPartition(scheme="iid"), labels, 3, seed=1)
    assert any(not np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_shards_limit_the_labels() -> None:
    labels = np.repeat(np.arange(10), 20)
    parts = partition_rows(ShardsPartition(scheme="shards", shards_per_client=2), labels, 10, seed=0)
    assert [len(part) for part in parts] == [20] * 10
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.001, 0.99, 1.0), (1000, 0.1, 0.3)])
def test_dirichlet_concentrates(alpha: float, low: float, high: float) -> None:
    """A small alpha puts each label with one client, a large one comes close to even shares."""
    labels = np.repeat(np.arange(10), 100)
    parts = partition_rows(DirichletPartition(scheme="dirichlet", alpha=alpha), labels, 5, seed=3)
    counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])  # (clients, labels)
    largest_share = (counts.max(axis=0) / 100).mean()
    assert low <= largest_share <= high

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.partition import CannotDeal, _feed_the_empty, partition_rows
from trainer.sections.data import (
    ColumnPartition,
    DirichletPartition,
    IidPartition,
    Partition,
    QuantityPartition,
    ShardsPartition,
)

schemes = st.one_of(
    st.just(IidPartition(scheme="iid")),
    st.builds(ShardsPartition, scheme=st.just("shards"), shards_per_client=st.integers(1, 5)),
    st.builds(DirichletPartition, scheme=st.just("dirichlet"), alpha=st.floats(0, 1000, exclude_min=True)),
    st.builds(QuantityPartition, scheme=st.just("quantity"), alpha=st.floats(0, 1000, exclude_min=True)),
)
BY_SITE = ColumnPartition(scheme="column", column="site")


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


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.01, 0.9, 1.0), (1000, 0.2, 0.3)])
def test_quantity_skews_sizes_alone(alpha: float, low: float, high: float) -> None:
    """Near 0 one client has almost all rows, large values are even; the labels' mix stays that of the whole."""
    labels = np.tile([0, 1], 5000)
    parts = partition_rows(QuantityPartition(scheme="quantity", alpha=alpha), labels, 5, seed=0)
    largest = max(parts, key=len)
    assert low <= len(largest) / len(labels) <= high
    assert labels[largest].mean() == pytest.approx(0.5, abs=0.03)


@given(sites=st.lists(st.integers(-3, 3), min_size=1, max_size=60), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_column_keeps_its_values_together(sites: list[int], share: float, seed: int) -> None:
    values = np.array(sites, np.float32)
    num_values = len(np.unique(values))
    num_clients = max(1, int(share * num_values))
    parts = partition_rows(BY_SITE, values, num_clients, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(values)))
    held = [set(values[part]) for part in parts]
    assert all(held)
    assert sum(map(len, held)) == num_values  # so no value lies with two clients
    # Longest first, to the emptiest: sizes differ by no more than the most frequent value's rows.
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= np.unique(values, return_counts=True)[1].max()


def test_a_column_by_hand() -> None:
    # Rows a value: 5 of 7.0, 3 of 1.0, 2 of 2.0 -> client 0: 7.0; client 1: 1.0 and 2.0.
    values = np.array([7, 1, 7, 2, 7, 1, 7, 2, 7, 1], np.float32)
    first, second = partition_rows(BY_SITE, values, 2, seed=0)
    assert first.tolist() == [0, 2, 4, 6, 8]
    assert second.tolist() == [1, 3, 5, 7, 9]


def test_a_column_of_too_few_values() -> None:
    with pytest.raises(CannotDeal, match=r"^has 2 different values of 'site' .* the job has 3 clients: lower"):
        partition_rows(BY_SITE, np.array([0, 1, 1, 1], np.float32), 3, seed=0)


def test_ten_thousand_clients_of_whom_most_drew_nothing() -> None:
    parts = partition_rows(QuantityPartition(scheme="quantity", alpha=1e-4), np.zeros(20_000), 10_000, seed=0)
    sizes = np.array([len(part) for part in parts])
    assert (sizes >= 1).all()
    assert sizes.sum() == 20_000
    assert (sizes == 1).sum() > 9_900


def test_the_empty_are_fed_by_the_richest_first_of_equals() -> None:
    parts = [np.array(part, np.int64) for part in ([], [0, 1], [2, 3, 4, 5], [], [6, 7, 8], [])]
    _feed_the_empty(parts)
    assert [part.tolist() for part in parts] == [[5], [0, 1], [2, 3], [4], [6, 7], [8]]

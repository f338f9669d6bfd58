"""Rules that a few lying clients cannot turn: all but the mean. Pure, torch-free.

They read the updates by blocks, a few elements of every update at a time, so their memory grows with the number of updates
by little. Numbers that clients say of themselves, such as their examples, carry no weight here: who lies in an update
lies about those as well. Only the bound on norms keeps the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from trainer.federated.aggregate import (
    Aggregate,
    Combine,
    RoundUpdates,
    Weigh,
    Weighting,
    blocks,
    weighted_mean,
    weighted_sum,
    zeros,
)
from trainer.federated.facts import RoundFacts
from trainer.federated.privacy import clip_factor
from trainer.sections import strategy as options
from trainer.weights import BLOCK, Weights

Wide = npt.NDArray[np.float64]
MOST_AT_A_TIME = BLOCK << 7
"""Elements of all updates together that are in memory at a time: 8 MB."""


def build_mean(_: options.Mean) -> Combine:
    """The weighted mean: no defence."""
    return weighted_mean


def build_norm_bound(chosen: options.NormBound) -> Combine:
    """sum(p_i * delta_i * min(1, M / |delta_i|)) (Sun et al. 2019, section 4, without noise)."""

    def combine(updates: RoundUpdates, weigh: Weigh) -> Aggregate:
        weighting, norms = weigh(updates), updates.norms
        cuts = [clip_factor(norm, chosen.max_norm) for norm in norms]
        factors = [factor * cut for factor, cut in zip(weighting.factors, cuts, strict=True)]
        delta, _ = weighted_sum(updates, factors, weighting.divisor)
        num_clipped = sum(norm > chosen.max_norm for norm in norms)
        return Aggregate(delta=delta, facts=RoundFacts(weights=weighting.shares, norms=norms, num_clipped=num_clipped))

    return combine


def build_median(_: options.Median) -> Combine:
    """The median of each coordinate; of an even number, the mean of the middle two (Yin et al. 2018, definition 1)."""

    def combine(updates: RoundUpdates, _: Weigh) -> Aggregate:
        low, high = (len(updates) - 1) // 2, len(updates) // 2
        delta = _by_coordinate(updates, range(len(updates)), lambda values: _mean_of_ranks(values, low, high))
        return Aggregate(delta=delta, facts=RoundFacts(norms=updates.norms))

    return combine


def build_trimmed_mean(chosen: options.TrimmedMean) -> Combine:
    """The mean of each coordinate without its k highest and k lowest values (Yin et al. 2018, definition 2)."""

    def combine(updates: RoundUpdates, _: Weigh) -> Aggregate:
        num = len(updates)
        cut = num_trimmed(chosen.trim, num)
        delta = _by_coordinate(updates, range(num), lambda values: _mean_of_ranks(values, cut, num - 1 - cut))
        return Aggregate(delta=delta, facts=RoundFacts(norms=updates.norms))

    return combine


def num_trimmed(trim: float, num: int) -> int:
    """Return floor(trim * num), at most what leaves a value. 0.29 * 100 is 29, whatever floating point says."""
    return min(int(trim * num + 1e-9), (num - 1) // 2)


def build_krum(chosen: options.Krum) -> Combine:
    """(Multi-)Krum (Blanchard et al. 2017, section 4): the mean of the `select` updates with the least scores.

    An update's score is the sum of its squared distances to its n - f - 2 nearest neighbours. Of equal scores, that of the
    lower client counts.
    """

    def combine(updates: RoundUpdates, _: Weigh) -> Aggregate:
        _require_enough(updates, chosen)
        scores = krum_scores(squared_distances(updates), chosen.attackers)
        kept = np.argsort(scores, kind="stable")[: chosen.select].tolist()
        weighting = Weighting(factors=[float(index in kept) for index in range(len(updates))], divisor=len(kept))
        delta, norms = weighted_sum(updates, weighting.factors, weighting.divisor)
        left_out = _left_out(updates, kept)
        return Aggregate(delta=delta, facts=RoundFacts(weights=weighting.shares, norms=norms, left_out=left_out))

    return combine


def build_bulyan(chosen: options.Bulyan) -> Combine:
    """Bulyan of Krum (El Mhamdi et al. 2018, section 4): choose, then take the middle of each coordinate.

    Krum chooses theta = n - 2f updates one after the other, each from those that are left. Of each coordinate's theta
    values, the theta - 2f closest to their median are averaged.
    """

    def combine(updates: RoundUpdates, _: Weigh) -> Aggregate:
        attackers, num = chosen.attackers, len(updates)
        _require_enough(updates, chosen)
        kept = choose_one_by_one(squared_distances(updates), attackers, num - 2 * attackers)
        delta = _by_coordinate(updates, kept, lambda values: mean_around_median(values, len(kept) - 2 * attackers))
        return Aggregate(delta=delta, facts=RoundFacts(norms=updates.norms, left_out=_left_out(updates, kept)))

    return combine


AGGREGATORS: dict[str, Callable[[Any], Combine]] = {
    "mean": build_mean,
    "norm_bound": build_norm_bound,
    "median": build_median,
    "trimmed_mean": build_trimmed_mean,
    "krum": build_krum,
    "bulyan": build_bulyan,
}


# --- distances and scores ---------------------------------------------------------------------------------------------


def squared_distances(updates: RoundUpdates) -> Wide:
    """Return the squared Euclidean distance of each two updates, (n, n), over all tensors.

    As |a|^2 + |b|^2 - 2ab, which is one matrix product a block: 30 times faster than differences for a hundred updates. The
    rounding of each distance depends on its own two updates. So it must be: moved to a common centre first, close updates
    would be told apart better, but one huge lie that moves the centre would blur all distances, and hide another.
    """
    gram = np.zeros((len(updates), len(updates)))
    # Two threads of OpenBLAS wait for one another, and on a busy machine that takes ten times as long as one alone.
    with threadpool_limits(1, user_api="blas"):
        for _, _, values in _coordinates(updates, range(len(updates))):
            gram += values @ values.T
    norms = np.diag(gram)
    distances = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0)
    np.fill_diagonal(distances, 0)
    return distances


def krum_scores(distances: Wide, attackers: int) -> Wide:
    """Return each update's sum of squared distances to its n - f - 2 nearest neighbours, (n,).

    At least one neighbour counts: Bulyan's last choices leave fewer updates than Krum is defined for.
    """
    neighbours = max(1, len(distances) - attackers - 2)
    # The first column is each one's distance to itself, 0.
    scores: Wide = np.sort(distances, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)
    return scores


def choose_one_by_one(distances: Wide, attackers: int, num: int) -> list[int]:
    """Return the indices, ascending, of `num` updates: Krum's choice, then that of the others, and so on."""
    left = list(range(len(distances)))
    chosen: list[int] = []
    while len(chosen) < num:
        best = int(np.argmin(krum_scores(distances[np.ix_(left, left)], attackers)))
        chosen.append(left.pop(best))
    return sorted(chosen)


def mean_around_median(values: Wide, num: int) -> Wide:
    """Return the mean of the `num` values closest to the median of each column; sorts in place. values: (n, B) -> (B,).

    Sorted, they lie side by side. Of two equally far values, the lower one counts.
    """
    values.sort(axis=0)
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    means = values[:num].mean(axis=0)
    for first in range(len(values) - num):
        # Once the value to drop is as close as the one to take, all further ones are as well.
        closer = middle - values[first] > values[first + num] - middle
        np.copyto(means, values[first + 1 : first + 1 + num].mean(axis=0), where=closer)
    return np.asarray(means)


# --- reading by blocks ------------------------------------------------------------------------------------------------


def _coordinates(updates: RoundUpdates, kept: Sequence[int]) -> Iterator[tuple[str, slice, Wide]]:
    """Yield a tensor's name, a stretch of its elements, and their values in the kept updates, (n, B)."""
    files = [updates.open(index) for index in kept]
    width = max(1, min(BLOCK, MOST_AT_A_TIME // len(files)))
    scratch = np.empty((len(files), width), dtype=np.float64)
    for name in sorted(updates.shapes):
        for start, stop in blocks(math.prod(updates.shapes[name]), width):
            values = scratch[:, : stop - start]
            for row, file in zip(values, files, strict=True):
                row[:] = file.block(name, start, stop)
            yield name, slice(start, stop), values


def _by_coordinate(updates: RoundUpdates, kept: Sequence[int], rule: Callable[[Wide], Wide]) -> Weights:
    """Apply `rule`, (n, B) -> (B,), to all coordinates of the kept updates."""
    delta = zeros(updates.shapes)
    for name, where, values in _coordinates(updates, kept):
        delta[name].reshape(-1)[where] = rule(values)
    return delta


def _mean_of_ranks(values: Wide, low: int, high: int) -> Wide:
    """Return the mean of each column's values from rank `low` to `high`, both included. Sorts in place."""
    values.sort(axis=0)
    return np.asarray(values[low : high + 1].mean(axis=0))


def _left_out(updates: RoundUpdates, kept: Iterable[int]) -> list[int]:
    chosen = set(kept)
    return [update.client for index, update in enumerate(updates.clients) if index not in chosen]


def _require_enough(updates: RoundUpdates, chosen: options.Krum | options.Bulyan) -> None:
    if len(updates) < (least := options.min_updates(chosen)):
        raise ValueError(
            f"The aggregator {chosen.name} with {chosen.attackers} attackers needs at least {least} updates, and the round "
            f"has {len(updates)}: raise clients.quorum, or lower aggregator.attackers."
        )

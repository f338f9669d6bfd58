"""Thinning: fewer points, the same picture. MinMax-LTTB (Van Der Donckt et al. 2023) keeps every extreme in sight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tsdownsample import MinMaxLTTBDownsampler

from webapp.telemetry.packing import Pack

_downsampler = MinMaxLTTBDownsampler()  # type: ignore[no-untyped-call]


def thin(pack: Pack, num_points: int) -> Pack:
    """Return at most `num_points` (>= 8) points of a pack, sorted by step, that draw the same curve.

    NaN and infinities are no heights, so the downsampler sees only the finite points; the first and the last of each
    run of equal non-finite values stay, so that a curve that broke is seen to be broken.
    """
    n = len(pack)
    if n <= num_points:
        return pack
    odd = _run_ends(pack.values)
    if len(odd) > num_points // 4:
        odd = odd[np.linspace(0, len(odd) - 1, num_points // 4).astype(np.intp)]
    finite = np.flatnonzero(np.isfinite(pack.values))
    budget = num_points - len(odd)
    if len(finite) > budget:
        x = np.ascontiguousarray(pack.steps[finite])
        kept = _downsampler.downsample(x, np.ascontiguousarray(pack.values[finite]), n_out=budget)
        finite = finite[kept.astype(np.intp)]
    return pack[np.union1d(finite, odd)]


def _run_ends(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices at which a run of equal non-finite values begins or ends."""
    kind = np.where(np.isnan(values), 3, np.where(np.isposinf(values), 2, np.where(np.isneginf(values), 1, 0)))
    change = np.flatnonzero(np.diff(kind))
    ends = np.union1d(np.union1d(change, change + 1), [0, len(values) - 1]).astype(np.intp)
    odd: NDArray[np.intp] = ends[kind[ends] != 0]
    return odd

"""Clipping, noise and draws: exact where they are arithmetic, by their moments where they are random."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trainer.federated.privacy import (
    CLIP_NORMS,
    clip_factor,
    gaussian,
    next_clip_norm,
    noise_rng,
    noise_stds,
    poisson_draw,
    share_below,
)
from trainer.sections.clients import Clients
from trainer.sections.privacy import AdaptiveClip, CentralPrivacy

ADAPTIVE = AdaptiveClip(name="adaptive", quantile=0.5, rate=0.2)


def test_short_update_stays() -> None:
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(1.0, 1.0) == 1.0
    assert clip_factor(0.0, 1.0) == 1.0


def test_long_update_is_cut_to_the_bound() -> None:
    assert clip_factor(4.0, 1.0) == 0.25
    update = np.random.default_rng(0).normal(size=1000)
    norm = float(np.linalg.norm(update))
    assert np.linalg.norm(update * clip_factor(norm, 0.1)) == pytest.approx(0.1, rel=1e-12)


def test_fixed_clip_noise() -> None:
    privacy = CentralPrivacy(noise_multiplier=0.7)
    assert noise_stds(privacy, Clients(num=30), 2.5) == (0.7 * 2.5, 0.0)


def test_adaptive_clip_noise() -> None:
    """Andrew et al. 2021, theorem 1: sum and count together cost as much as one release with z."""
    privacy = CentralPrivacy(noise_multiplier=1.0, clip=ADAPTIVE)
    sum_std, count_std = noise_stds(privacy, Clients(num=100), 3.0)
    assert count_std == 5.0
    z_delta = sum_std / 3.0
    assert z_delta == pytest.approx(1 / math.sqrt(1 - 0.01), rel=1e-12)
    # Two Gaussian releases, of sensitivity 1 at z_delta and of sensitivity 1/2 at sigma_b: their precisions add up.
    assert z_delta**-2 + (0.5 / count_std) ** 2 == pytest.approx(privacy.noise_multiplier**-2, rel=1e-12)


def test_noise_follows_the_expected_number() -> None:
    privacy = CentralPrivacy(noise_multiplier=1.0, clip=ADAPTIVE)
    assert noise_stds(privacy, Clients(num=1000, per_round=40), 1.0)[1] == 2.0


@pytest.mark.parametrize(
    ("num_below", "num_updates", "noise", "share"), [(20, 20, 0, 1), (0, 20, 0, 0), (15, 20, 0, 0.75), (10, 20, 2, 0.6)]
)
def test_share_below(num_below: int, num_updates: int, noise: float, share: float) -> None:
    assert share_below(num_below, num_updates, Clients(num=20), noise) == pytest.approx(share, rel=1e-12)


def test_share_moves_by_half_a_client() -> None:
    """With or without one client, whichever its update: sensitivity 1/2 on the count."""
    clients = Clients(num=20)
    before = share_below(9, 18, clients, 0)
    assert abs(share_below(10, 19, clients, 0) - before) == pytest.approx(0.5 / 20)
    assert abs(share_below(9, 19, clients, 0) - before) == pytest.approx(0.5 / 20)


def test_clip_norm_follows_the_quantile() -> None:
    assert next_clip_norm(ADAPTIVE, 2.0, 0.5) == 2.0
    assert next_clip_norm(ADAPTIVE, 2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.1))
    assert next_clip_norm(ADAPTIVE, 2.0, 0.0) == pytest.approx(2.0 * math.exp(0.1))


def test_clip_norm_stays_among_the_floats() -> None:
    eager = AdaptiveClip(name="adaptive", rate=10)
    low, high = 1.0, 1.0
    for _ in range(1000):
        low, high = next_clip_norm(eager, low, 1.0), next_clip_norm(eager, high, 0.0)
    assert (low, high) == CLIP_NORMS


def test_clip_norm_finds_the_median() -> None:
    """Andrew et al. 2021, figure 1: norms of which half lie below 10 pull the clip there from far off."""
    norms = np.random.default_rng(1).lognormal(mean=math.log(10), sigma=0.5, size=1001)
    clients, clip = Clients(num=len(norms)), 0.1
    for _ in range(100):
        clip = next_clip_norm(ADAPTIVE, clip, share_below(int((norms <= clip).sum()), len(norms), clients, 0))
    assert clip == pytest.approx(float(np.median(norms)), rel=0.02)


def test_gaussian_of_a_seed() -> None:
    draw = gaussian((2, 3), 1.5, np.random.default_rng(3))
    np.testing.assert_array_equal(draw, np.random.default_rng(3).normal(0, 1.5, (2, 3)))
    assert draw.dtype == np.float64


def test_noise_has_its_moments_and_no_correlation() -> None:
    draw = gaussian(200_000, 2.0, noise_rng())
    # Six standard errors: it fails once in 500 million runs.
    assert abs(draw.mean()) < 6 * 2.0 / math.sqrt(len(draw))
    assert abs(draw.var() - 4.0) < 6 * 4.0 * math.sqrt(2 / len(draw))
    assert abs(float(np.mean(draw[1:] * draw[:-1]))) < 6 * 4.0 / math.sqrt(len(draw))


def test_noise_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither numpy's nor Python's seed has a say in it."""
    import random

    draws: list[Any] = []
    for _ in range(2):
        np.random.seed(0)
        random.seed(0)
        draws.append((gaussian(4, 1.0, noise_rng()), poisson_draw(Clients(num=200, fraction=0.5))))
    assert not np.array_equal(draws[0][0], draws[1][0])
    assert draws[0][1] != draws[1][1]


def test_all_are_drawn() -> None:
    assert poisson_draw(Clients(num=7)) == list(range(7))
    assert poisson_draw(Clients(num=7, per_round=7, fraction=0.1)) == list(range(7))


def test_each_client_is_drawn_by_itself() -> None:
    """The number of clients is binomial, not fixed; each has the same chance."""
    clients, num_draws = Clients(num=40, per_round=10), 2000
    draws = [poisson_draw(clients) for _ in range(num_draws)]
    assert all(draw == sorted(set(draw)) for draw in draws)
    sizes = np.array([len(draw) for draw in draws])
    assert abs(sizes.mean() - 10) < 6 * math.sqrt(7.5 / num_draws)
    assert abs(sizes.var() - 7.5) < 6 * 7.5 * math.sqrt(2 / num_draws)
    counts = np.bincount(np.concatenate([np.array(draw) for draw in draws]), minlength=40)
    assert np.abs(counts - num_draws / 4).max() < 6 * math.sqrt(num_draws * 0.25 * 0.75)


def test_a_draw_is_never_empty() -> None:
    clients = Clients(num=2, per_round=1)
    draws = [tuple(poisson_draw(clients)) for _ in range(1000)]
    assert set(draws) == {(0,), (1,), (0, 1)}
    # A third each, drawn again where nobody was: a quarter of all draws.
    alone = draws.count((0,)) / len(draws)
    assert clients.chance_alone == pytest.approx(1 / 3)
    assert abs(alone - clients.chance_alone) < 6 * math.sqrt(2 / 9 / len(draws))

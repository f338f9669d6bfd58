"""Central differential privacy for clients (DP-FedAvg, McMahan et al. 2018): clip, noise, and what they cost. Torch-free.

The guarantee is (epsilon, delta) for one client in or out, against whoever sees the weights of every round. The server itself
is trusted: it sees each update. What it says beside the weights (who took part, metrics, counts, norms) carries no noise and
is not covered.

Noise and draws come from the operating system's randomness, never from the spec's seed: whoever knows the spec could draw
the same noise again and subtract it, or know who took part. So a job with privacy cannot be repeated bit by bit. Noise is
drawn in float64 and the weights are rounded to float32; that the last bits of floats tell nothing (Mironov 2012) is not proved.
"""

from __future__ import annotations

import logging
import math
import secrets
from bisect import bisect_left, bisect_right
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainer.sections.clients import Clients
from trainer.sections.privacy import AdaptiveClip, CentralPrivacy

COUNT_NOISE_SHARE = 1 / 20
"""Standard deviation of the noise on the count of short updates, as a share of the clients expected (Andrew et al. 2021,
section 3.1)."""
CLIP_NORMS = (1e-6, 1e6)
"""Where an adaptive clip norm stays: it is multiplied each round, and would leave the floats in the end."""


def clip_factor(norm: float, bound: float) -> float:
    """Return what an update of this Euclidean norm is multiplied by to be at most `bound` long: min(1, bound / norm)."""
    return 1.0 if norm <= bound else bound / norm


def noise_stds(privacy: CentralPrivacy, clients: Clients, clip_norm: float) -> tuple[float, float]:
    """Return the standard deviations of the noise (on each coordinate of the sum of updates, on the count of short ones).

    With a fixed clip they are z * C and 0, z being the noise multiplier. An adaptive clip releases the count as well, at
    sigma_b = m / 20 for m clients expected, and the sum pays for it with a larger z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2),
    so that both together cost what z says (Andrew et al. 2021, theorem 1).
    """
    z = privacy.noise_multiplier
    if not isinstance(privacy.clip, AdaptiveClip):
        return z * clip_norm, 0.0
    count_std = clients.num_drawn * COUNT_NOISE_SHARE
    # The spec refuses z >= 2 sigma_b, for which no noise on the sum would do.
    return z / math.sqrt(1 - (z / (2 * count_std)) ** 2) * clip_norm, count_std


def share_below(num_below: int, num_updates: int, clients: Clients, count_noise: float) -> float:
    """Return the noisy share of updates that were no longer than the clip norm, for `next_clip_norm`.

    Each of the `num_updates` counts as +1/2 or -1/2 and not as 1 or 0: one client then moves the sum by 1/2, which is what
    `noise_stds` presumes (Andrew et al. 2021, section 3.1). `count_noise` is one draw of N(0, std of the count). The divisor is
    the number of clients expected: the number that returned is nobody's to know.
    """
    return (num_below - num_updates / 2 + count_noise) / clients.num_drawn + 0.5


def next_clip_norm(clip: AdaptiveClip, norm: float, share: float) -> float:
    """Return the next round's clip norm: C * exp(-rate * (share - quantile)) (Andrew et al. 2021, algorithm 1)."""
    low, high = CLIP_NORMS
    return min(max(norm * math.exp(-clip.rate * (share - clip.quantile)), low), high)


def noise_rng() -> np.random.Generator:
    """Return a generator for privacy noise: ChaCha20 with a fresh key from the operating system.

    numpy's own generators are no ciphers: where an update is zero the weights show the noise itself, and from enough of it
    all other noise of such a generator could be computed.
    """
    from randomgen import ChaCha  # of no use but for noise

    return np.random.Generator(ChaCha(key=secrets.randbits(256)))


def gaussian(shape: tuple[int, ...] | int, std: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return N(0, std^2) of this shape, float64. `rng` is a `noise_rng()`, except in tests."""
    return rng.normal(scale=std, size=shape)


def poisson_draw(clients: Clients) -> list[int]:
    """Return the indices of a round's clients, ascending: each by itself with the probability `clients.share_drawn`.

    The accountant's gain from sampling rests on this way of drawing. An empty draw is drawn again; `epsilon_after` pays for
    that.
    """
    chance, source = clients.share_drawn, secrets.SystemRandom()
    while True:
        if drawn := [client for client in range(clients.total) if source.random() < chance]:
            return drawn


def epsilon_after(privacy: CentralPrivacy, clients: Clients, rounds: int) -> float:
    """Return epsilon after that many rounds, at the privacy's delta. Infinite where no epsilon can be promised.

    Renyi accounting of the Poisson-sampled Gaussian mechanism (Mironov et al. 2019) by dp-accounting. Where any other client
    is drawn, each one is drawn with its own probability, as the accountant presumes. Where none is, drawing again tells that
    this one took part: that chance, `clients.chance_alone` a round, is paid from delta.
    """
    if rounds == 0:
        return 0.0
    delta = privacy.delta - rounds * clients.chance_alone
    if delta <= 0:
        return math.inf
    from dp_accounting.rdp import compute_epsilon

    orders, divergences = sampled_cost(privacy.noise_multiplier, clients.share_drawn)
    epsilon, _ = compute_epsilon(orders, rounds * divergences, delta)
    return float(epsilon)


def rounds_within(privacy: CentralPrivacy, clients: Clients, rounds: int) -> int:
    """Return how many of `rounds` stay within `privacy.max_epsilon`: all of them where it is None."""
    if privacy.max_epsilon is None:
        return rounds
    return bisect_right(range(1, rounds + 1), privacy.max_epsilon, key=lambda n: epsilon_after(privacy, clients, n))


def noise_within(privacy: CentralPrivacy, clients: Clients, rounds: int) -> float | None:
    """Return the least noise multiplier, to 2 %, with which all of `rounds` stay within `privacy.max_epsilon`.

    None where there is no limit to stay within, or no multiplier that the spec takes is enough. For a person to choose by: it
    may take a second.
    """
    limit = privacy.max_epsilon
    if limit is None:
        return None
    adaptive = isinstance(privacy.clip, AdaptiveClip)
    # The bounds of the spec.
    most = min(1000.0, 2 * COUNT_NOISE_SHARE * clients.num_drawn / 1.02) if adaptive else 1000.0
    least = min(0.01, most)
    steps = range(int(math.log(most / least, 1.02)) + 1)

    def is_enough(step: int) -> bool:
        noisy = privacy.model_copy(update={"noise_multiplier": least * 1.02**step})
        return epsilon_after(noisy, clients, rounds) <= limit

    step = bisect_left(steps, True, key=is_enough)
    return least * 1.02**step if step < len(steps) else None


@lru_cache(maxsize=256)
def sampled_cost(noise_multiplier: float, share: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return Renyi orders and the divergence at each of one Gaussian mechanism on a Poisson sample of this share.

    Those of several add up. A sampled one takes 50 ms: hence the cache.
    """
    # It brings scipy.stats: a second that no process should pay before it is asked.
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    # It warns of each order that it leaves out as too costly to compute. That loosens the bound a little; it holds.
    logging.getLogger("absl").setLevel(logging.ERROR)
    event = GaussianDpEvent(noise_multiplier)
    accountant = RdpAccountant()
    accountant.compose(event if share == 1 else PoissonSampledDpEvent(share, event))
    return accountant.orders, accountant.rdp

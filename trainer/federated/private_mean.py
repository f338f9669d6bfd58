"""The mean with central differential privacy (DP-FedAvg, McMahan et al. 2018, algorithm 1). Torch-free.

Not pure, and meant so: the noise comes from the operating system (`trainer.federated.privacy`).
"""

from __future__ import annotations

from trainer.federated.aggregate import Aggregate, RoundUpdates, blocks, weighted_sum
from trainer.federated.facts import RoundFacts
from trainer.federated.privacy import (
    clip_factor,
    gaussian,
    next_clip_norm,
    noise_rng,
    noise_stds,
    share_below,
)
from trainer.sections.clients import Clients
from trainer.sections.privacy import AdaptiveClip, CentralPrivacy


def private_mean(
    updates: RoundUpdates, privacy: CentralPrivacy, clients: Clients, clip_norm: float | None = None
) -> Aggregate:
    """Return (sum of clipped updates + noise) / expected clients, with facts but for epsilon, which is over all rounds.

    `clip_norm` is the one that the last round left; None before the first, and where it is fixed. The divisor does not
    depend on who returned, so one client more or less moves the result by at most clip_norm / expected clients.
    """
    clip = privacy.clip
    if isinstance(clip, AdaptiveClip):
        bound = clip.initial_norm if clip_norm is None else clip_norm
    else:
        bound = clip.norm
    sum_std, count_std = noise_stds(privacy, clients, bound)
    rng, expected = noise_rng(), clients.num_drawn

    norms = updates.norms
    noise_std = sum_std / expected
    delta, _ = weighted_sum(updates, [clip_factor(norm, bound) for norm in norms], expected)
    for mean in delta.values():
        flat = mean.reshape(-1)
        for start, stop in blocks(flat.size):
            flat[start:stop] += gaussian(stop - start, noise_std, rng)

    num_below = sum(norm <= bound for norm in norms)
    following = None
    if isinstance(clip, AdaptiveClip):
        noise = float(gaussian(1, count_std, rng)[0])
        following = next_clip_norm(clip, bound, share_below(num_below, len(norms), clients, noise))
    facts = RoundFacts(
        weights=[1 / len(norms)] * len(norms),
        norms=norms,
        num_clipped=len(norms) - num_below,
        clip_norm=bound,
        noise_std=noise_std,
    )
    return Aggregate(delta=delta, facts=facts, clip_norm=following)

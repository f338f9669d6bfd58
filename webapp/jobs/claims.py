"""What a client says of its own training, beside its update: can it be true? Pure.

Strategies weigh by the claims, and pages draw them; a node may be broken, old, or lie.
"""

from __future__ import annotations

import math

from trainer.protocol import UpdateOffer
from trainer.sources import SourceSchema
from trainer.spec import JobSpec

MAX_METRICS = 64
"""Metrics that one update may carry."""
MAX_FETCHES = 100
"""Times that a node may fetch a round's weights: broken connections make it start again."""


def why_false(offer: UpdateOffer, spec: JobSpec, source: SourceSchema, *, node_name: str, weights_bytes: int) -> str:
    """Return a sentence on the first claim that cannot be true or that the strategy misses; empty where there is none.

    `source` is the job's data source on that node, `weights_bytes` the size of the round's weights.
    """
    num_rows = source.num_rows
    if not 1 <= offer.num_examples <= num_rows:
        return (
            f"The update claims {offer.num_examples:,} examples, and '{source.name}' on {node_name} has {num_rows:,}."
        )
    if not (math.isfinite(offer.seconds_training) and offer.seconds_training >= 0):
        return "The update's training time is not a number of seconds."
    if len(offer.metrics) > MAX_METRICS or any(
        not 1 <= len(name) <= 100 or not name.isprintable() for name in offer.metrics
    ):
        return f"An update carries at most {MAX_METRICS} metrics, each with a name of 1 to 100 printable characters."
    if offer.bytes_down > MAX_FETCHES * weights_bytes:
        return f"The update claims {offer.bytes_down:,} fetched bytes, and the round's weights have {weights_bytes:,}."
    return (
        _why_false_epsilon(offer, spec)
        or _why_false_steps(offer, spec)
        or _why_false_loss(offer, spec)
        or _why_false_labels(offer, source)
    )


def claimed_epsilon(offer: UpdateOffer, spec: JobSpec) -> float | None:
    """Return the epsilon that an update says, which counts whether it is summed or not; None where it cannot be true."""
    return None if _why_false_epsilon(offer, spec) else offer.epsilon


def _why_false_epsilon(offer: UpdateOffer, spec: JobSpec) -> str:
    assert spec.federated is not None
    if spec.federated.local_privacy is None:
        return "" if offer.epsilon is None else "The update claims local privacy, and the job has none."
    if offer.epsilon is None:
        return (
            "The job trains with local differential privacy, and the update does not say what it cost: update the node."
        )
    if not math.isfinite(offer.epsilon):
        return f"The update's epsilon is {offer.epsilon:g}, and must be finite."
    return ""


def _why_false_steps(offer: UpdateOffer, spec: JobSpec) -> str:
    assert spec.federated is not None
    epochs, batch_size = spec.federated.local_epochs, spec.training.batch_size
    most = epochs * math.ceil(offer.num_examples / batch_size)
    if offer.num_steps > most:
        return (
            f"The update claims {offer.num_steps:,} steps: {epochs:,} x {offer.num_examples:,} examples in batches of "
            f"{batch_size:,} are {most:,}."
        )
    if spec.federated.strategy.name == "fednova" and offer.num_steps == 0:
        return "FedNova divides by the client's steps, and the update does not say how many it took: update the node."
    return ""


def _why_false_loss(offer: UpdateOffer, spec: JobSpec) -> str:
    assert spec.federated is not None
    if offer.loss_before is not None and not (math.isfinite(offer.loss_before) and offer.loss_before >= 0):
        return (
            f"The update's loss before training is {offer.loss_before:g}, and must be finite and at least 0: lower the "
            "learning rate."
        )
    if spec.federated.strategy.name == "qfedavg" and offer.loss_before is None:
        return "q-FedAvg weighs by the loss before training, and the update does not say it: update the node."
    return ""


def _why_false_labels(offer: UpdateOffer, source: SourceSchema) -> str:
    if not offer.label_counts:
        return ""
    counts = offer.label_counts
    known = source.classes or [str(number) for number in range(source.num_classes or 0)]
    if unknown := sorted(counts.keys() - set(known)):
        return f"The update counts rows of the label '{unknown[0][:80]}', which '{source.name}' does not have."
    if min(counts.values()) < 0 or sum(counts.values()) != offer.num_examples:
        return f"The update's label counts come to {sum(counts.values()):,}, and it claims {offer.num_examples:,} examples."
    return ""

"""Names of tensors that mean something to a federated job. Torch-free."""

from __future__ import annotations

VARIATE = "variate."
"""SCAFFOLD: an update's `variate.<name>` is the change of the client's control variate of tensor `<name>`."""


def is_norm(name: str) -> bool:
    """Whether a tensor belongs to a normalisation layer: a part of its dotted name begins with `norm`.

    So it is in the models that this package builds: `norm1.weight`, `0.norm.running_mean`.
    """
    return any(part.startswith("norm") for part in name.split("."))

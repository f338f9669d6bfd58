"""How many rows of each class a client has: counts, which a node may share, and never a row."""

from __future__ import annotations

import torch

from trainer.data.prepare import Dataset
from trainer.sources import SourceSchema


def count_labels(dataset: Dataset, description: SourceSchema) -> dict[str, int]:
    """Return the training rows of each class that occurs, in the order of the classes' numbers.

    Keys are the classes' names, or their numbers where they have none. Empty for a regression.
    """
    if description.num_classes is None:
        return {}
    names = description.classes or [str(number) for number in range(description.num_classes)]
    counts = torch.bincount(dataset.train_y, minlength=description.num_classes).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}

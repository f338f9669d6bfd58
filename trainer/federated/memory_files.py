"""What a strategy remembers, as it lies in a file: `<kind>/<tensor>`, such as `momentum/0.weight`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.weights import Weights


def flat_memory(memory: Mapping[str, Weights]) -> Weights:
    """Return `State.memory` under the names of its file."""
    return {f"{kind}/{name}": array for kind, arrays in memory.items() for name, array in arrays.items()}


def memory_by_kind(flat: Weights) -> dict[str, Weights]:
    """Return what a file holds as `State.memory`."""
    memory: dict[str, Weights] = {}
    for path, array in flat.items():
        kind, _, name = path.partition("/")
        memory.setdefault(kind, {})[name] = array
    return memory

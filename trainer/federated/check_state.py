"""The door of simulations: are these the weights, and the memory of the strategy, that this job goes on from? Torch-free.

What real nodes send is summed by the server itself; a simulation sends the sums' result, and the same must hold of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.federated.aggregate import blocks
from trainer.federated.encoding import update_shapes
from trainer.federated.server import SERVER_OPTIMIZERS
from trainer.sections.federated import Federated
from trainer.sections.privacy import AdaptiveClip
from trainer.weights import Header, NotSafetensors, map_weights, read_header


class StateRefused(ValueError):
    """The job cannot go on from these files. The text is a sentence that names the tensor."""


def expected_memory(weights: Header, federated: Federated) -> Header:
    """Return the header of what the strategy remembers after a round: `<kind>/<tensor>`, as `strategy.State` says. Empty: nothing."""
    kinds = [*SERVER_OPTIMIZERS[federated.server_optimizer.name](federated.server_optimizer).before]
    if federated.strategy.name == "scaffold":
        kinds.append("variate")
    shapes = update_shapes(weights, federated)
    header: Header = {f"{kind}/{name}": ("F32", shape) for kind in kinds for name, shape in shapes.items()}
    if federated.privacy and isinstance(federated.privacy.clip, AdaptiveClip):
        header["clip/norm"] = ("F64", (1,))
    return header


def check_state(weights: Path, memory: Path | None, expected: Header, federated: Federated) -> None:
    """Check the files that a simulation leaves after a round, whose weights had the header `expected` before it.

    One pass over the mapped files, in constant memory. Raises StateRefused, and FileNotFoundError where one is not there.
    """
    _check_file("weights", weights, expected)
    wanted = expected_memory(expected, federated)
    if wanted and memory is None:
        kind = next(iter(wanted)).partition("/")[0]
        raise StateRefused(f"The strategy's memory is missing: this job goes on from a {kind}.")
    if memory is not None:
        _check_file("strategy's memory", memory, wanted)


def _check_file(what: str, path: Path, expected: Header) -> None:
    try:
        header = read_header(path)
    except NotSafetensors as error:
        raise StateRefused(f"The {what} cannot be read: {error.__cause__}.") from error
    for name in sorted(expected.keys() | header.keys()):
        if (dtype_and_shape := header.get(name)) != expected.get(name):
            raise StateRefused(
                f"Tensor '{name[:80]}' of the {what} is {_said(dtype_and_shape)}, and must be {_said(expected.get(name))}."
            )
    for name, array in map_weights(path).items():
        flat = array.reshape(-1)
        if not all(np.isfinite(flat[start:stop]).all() for start, stop in blocks(flat.size)):
            raise StateRefused(
                f"Tensor '{name[:80]}' of the {what} holds NaN or infinite values: lower the learning rate."
            )


def _said(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if entry is None else f"{entry[0]} of the shape {list(entry[1])}"

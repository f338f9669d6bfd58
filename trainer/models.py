"""The models by name, and the way between a module and its weights as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.sections.model import CnnOptions, LinearOptions, MlpOptions, Model
from trainer.sources import SourceSchema
from trainer.weights import Weights

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


Norms = dict[str, Callable[[int], list[nn.Module]]]
"""Kind of normalisation -> channels -> the layers to put in: one or none."""

FLAT_NORMS: Norms = {
    # Inputs of (B, C).
    "none": lambda _: [],
    "batch": lambda channels: [nn.BatchNorm1d(channels)],
    "layer": lambda channels: [nn.LayerNorm(channels)],
    "group": lambda channels: [nn.GroupNorm(_num_groups(channels), channels)],
}
IMAGE_NORMS: Norms = {
    # Inputs of (B, C, H, W). One group is layer normalisation over channels and pixels (Wu and He 2018).
    "none": lambda _: [],
    "batch": lambda channels: [nn.BatchNorm2d(channels)],
    "layer": lambda channels: [nn.GroupNorm(1, channels)],
    "group": lambda channels: [nn.GroupNorm(_num_groups(channels), channels)],
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NORM_LAYERS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)


def _num_groups(channels: int) -> int:
    """At most 8 equal groups, of two channels at least: alone, a channel without pixels would always become 0."""
    return gcd(channels // 2, 8) if channels % 2 == 0 else 1


def build_linear(options: LinearOptions, source: SourceSchema) -> nn.Module:
    """One affine map of the flattened example: (B, *shape) -> (B, outputs)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(source.shape), source.num_outputs, bias=options.bias))


def build_mlp(options: MlpOptions, source: SourceSchema) -> nn.Module:
    """Dense layers, after each hidden one a normalisation and an activation: (B, *shape) -> (B, outputs)."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(source.shape)
    for hidden in options.hidden:
        layers += [nn.Linear(width, hidden), *FLAT_NORMS[options.norm](hidden), ACTIVATIONS[options.activation]()]
        width = hidden
    return _chain(*layers, nn.Linear(width, source.num_outputs))


def build_cnn(options: CnnOptions, source: SourceSchema) -> nn.Module:
    """3x3 convolutions, each with a normalisation, relu and a 2x2 max pooling, then a dense layer with a normalisation and
    relu, and a last one: (B, C, H, W) -> (B, outputs)."""
    channels, height, width = source.shape
    layers: list[nn.Module] = []
    for out in options.channels:
        convolution = nn.Conv2d(channels, out, kernel_size=3, padding=1)
        layers += [convolution, *IMAGE_NORMS[options.norm](out), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = out, height // 2, width // 2
    dense = nn.Linear(channels * height * width, options.hidden)
    layers += [nn.Flatten(), dense, *FLAT_NORMS[options.norm](options.hidden), nn.ReLU()]
    return _chain(*layers, nn.Linear(options.hidden, source.num_outputs))


def _chain(*layers: nn.Module) -> nn.Sequential:
    """Return the layers in a row. Normalisation layers are called norm1, norm2, ..., by which `is_norm` knows them; the
    others are numbered as if there were none, so that every choice of `norm` starts from the same weights."""
    chain = nn.Sequential()
    norms, others = count(1), count(0)
    for layer in layers:
        chain.add_module(f"norm{next(norms)}" if isinstance(layer, NORM_LAYERS) else str(next(others)), layer)
    return chain


MODELS: dict[str, Callable[[Any, SourceSchema], nn.Module]] = {
    "linear": build_linear,
    "mlp": build_mlp,
    "cnn": build_cnn,
}


def build_model(model: Model, source: SourceSchema, seed: int) -> nn.Module:
    """Return the model on the CPU, with weights that depend on `seed` alone. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would set those of all GPUs as well.
        torch.default_generator.manual_seed(seed)
        return MODELS[model.name](model.options, source)


def least_batch(module: nn.Module) -> int:
    """Return the fewest rows of a training batch: batch normalisation can make nothing of a single one."""
    return 2 if any(isinstance(layer, BATCH_NORMS) for layer in module.modules()) else 1


def _travelling(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that travel: weights and floating-point buffers. Counters and masks stay at home."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def weights_of(module: nn.Module) -> Weights:
    """Return the module's weights as float32 arrays. On the CPU they share its memory."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in _travelling(module).items()}


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy `weights` into the module, in place. Raises ValueError where names or shapes differ."""
    own = _travelling(module)
    if own.keys() != weights.keys():
        raise ValueError(f"The weights {sorted(weights)} do not fit the model's {sorted(own)}.")
    with torch.no_grad():
        for name, tensor in own.items():
            if tuple(tensor.shape) != weights[name].shape:
                raise ValueError(
                    f"'{name}' has the shape {weights[name].shape}, and the model needs {tuple(tensor.shape)}."
                )
            # A copy of one tensor at a time: torch takes no read-only memory, and mapped files are read-only.
            tensor.copy_(torch.from_numpy(np.array(weights[name])))

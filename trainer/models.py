"""The models by name, and the way between a module and its weights as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.sections.model import CnnOptions, LinearOptions, MlpOptions, Model
from trainer.sources import SourceSchema
from trainer.weights import Weights

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def build_linear(options: LinearOptions, source: SourceSchema) -> nn.Module:
    """One affine map of the flattened example: (B, *shape) -> (B, outputs)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(source.shape), source.num_outputs, bias=options.bias))


def build_mlp(options: MlpOptions, source: SourceSchema) -> nn.Module:
    """Dense layers with an activation after each hidden one: (B, *shape) -> (B, outputs)."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(source.shape)
    for hidden in options.hidden:
        layers += [nn.Linear(width, hidden), ACTIVATIONS[options.activation]()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, source.num_outputs))


def build_cnn(options: CnnOptions, source: SourceSchema) -> nn.Module:
    """3x3 convolutions, each with relu and a 2x2 max pooling, then two dense layers: (B, C, H, W) -> (B, outputs)."""
    channels, height, width = source.shape
    layers: list[nn.Module] = []
    for out in options.channels:
        layers += [nn.Conv2d(channels, out, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = out, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, options.hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(options.hidden, source.num_outputs))


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

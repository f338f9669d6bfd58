"""DP-SGD by Opacus (Abadi et al. 2016, algorithm 1): local training that no single row can shape by much.

Gradients of single rows come from Opacus' GradSampleModule, clipping and accounting of steps from its DPOptimizer. The noise and
the draws of rows do not: torch's generators are no ciphers, its CPU one has 2^32 starts only, and a forkserver's child would
begin where all others do. They come from `noise_rng`, so no two runs of a spec are alike.

Importing this module imports Opacus (0.2 s): the agent's forkserver has done it, and no other process does without need.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.federated.privacy import gaussian, noise_rng
from trainer.federated.row_privacy import sampling_of
from trainer.losses import Objective
from trainer.sections.privacy import LocalPrivacy
from trainer.training import Precision, Tally, forward_context

PART_NUMBERS = 1 << 26
"""Gradients of single rows that lie in memory at once, in numbers: 256 MB as float32. Larger batches are summed part by part."""


class PrivateTraining:
    """A client's model, prepared for DP-SGD. Evaluations of the model go on as before."""

    def __init__(self, model: nn.Module, privacy: LocalPrivacy) -> None:
        """Raises NotImplementedError for a model with buffers, such as batch normalisation's: they carry no noise."""
        self._model: nn.Module = GradSampleModule(model)
        self._privacy = privacy
        self._part_rows = max(1, PART_NUMBERS // sum(parameter.numel() for parameter in model.parameters()))

    def train_epochs(
        self,
        objective: Objective,
        optimizer: Optimizer,
        x: Tensor,
        y: Tensor,
        *,
        epochs: int,
        batch_size: int,
        precision: Precision,
        after_epoch: Callable[[int, dict[str, float]], None],
        before_step: Callable[[], None],
    ) -> None:
        """Train `epochs` times as many steps as make one pass on average, each on a Poisson sample of the rows.

        `before_step` is called at each step when the noisy gradients are there, which it may change. `after_epoch` is called
        with the epoch, from 1, and the metrics of the rows as its steps saw them; none where no step drew any.
        """
        # Afresh: a process that was forked must not have another's.
        rng = noise_rng()
        rate, steps = sampling_of(len(y), batch_size)
        private = _PrivateOptimizer(optimizer, self._privacy, rate * len(y), rng)
        private.attach_step_hook(lambda _: before_step())
        with warnings.catch_warnings():
            # True of the first layer, whose input has no gradient; its gradients by row need none.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            for epoch in range(1, epochs + 1):
                self._model.train()
                seen = Tally(objective, y.device)
                for _ in range(steps):
                    rows = np.flatnonzero(rng.random(len(y)) < rate)
                    self._step(objective, private, x, y, torch.from_numpy(rows).to(y.device), precision, seen)
                totals = seen.totals()
                after_epoch(epoch, objective.metrics(totals) if totals[0] else {})

    def _step(
        self,
        objective: Objective,
        private: DPOptimizer,
        x: Tensor,
        y: Tensor,
        rows: Tensor,
        precision: Precision,
        seen: Tally,
    ) -> None:
        parts = torch.split(rows, self._part_rows)
        for part in parts:
            private.zero_grad()
            if len(part):
                with forward_context(precision, y.device):
                    outputs = self._model(x[part]).float()
                targets = y[part]
                torch.autograd.backward(objective.loss(outputs, targets))
                seen.add(outputs, targets)
            else:
                # A step of pure noise: leaving it out would tell that the sample was empty.
                for parameter in private.params:
                    parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            private.signal_skip_step(part is not parts[-1])
            private.step()


class _PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimizer with our noise. The sum of cut gradients is divided by the expected batch, never by the drawn one."""

    def __init__(
        self, optimizer: Optimizer, privacy: LocalPrivacy, batch_rows: float, rng: np.random.Generator
    ) -> None:
        # With a noise multiplier of 0 Opacus draws none itself, and still marks each sum as used.
        super().__init__(
            optimizer, noise_multiplier=0.0, max_grad_norm=privacy.max_grad_norm, expected_batch_size=batch_rows
        )
        self._std = privacy.noise_multiplier * privacy.max_grad_norm
        self._rng = rng

    def add_noise(self) -> None:
        super().add_noise()
        for parameter in self.params:
            noise = torch.from_numpy(gaussian(tuple(parameter.shape), self._std, self._rng)).to(parameter.device)
            parameter.grad = (parameter.grad.double() + noise).to(parameter.dtype)

    def _get_flat_grad_sample(self, p: Any) -> Tensor:
        # Under bfloat16 the norms would be rounded to three digits, and rows cut to a little more than the norm.
        gradients: Tensor = super()._get_flat_grad_sample(p).float()
        # No norm cuts NaN or infinity: one such row would make the whole update NaN, and so tell that it is there.
        return gradients.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

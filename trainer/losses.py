"""The losses by name, and the metrics that go with a task.

Metrics are made of sums over rows, so that batches and ranks add up to exactly what one pass over all rows gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.data.source import Task

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the squared error. outputs: (B, 1), targets: (B,)."""
    return F.mse_loss(outputs.squeeze(-1), targets)


LOSSES: dict[str, Loss] = {
    # outputs: (B, classes), targets: (B,) of class numbers; both return the mean over rows, a scalar.
    "cross_entropy": F.cross_entropy,
    "hinge": F.multi_margin_loss,  # max(0, 1 - o_y + o_j) over the wrong classes j, divided by the number of classes
    "mse": mean_squared_error,
}

AUTO: dict[Task, str] = {"classification": "cross_entropy", "regression": "mse"}
"""What the loss 'auto' means."""


@dataclass(frozen=True)
class Objective:
    """What is minimised, and how its quality is told: loss and accuracy for classes, loss and R2 for numbers."""

    task: Task
    loss: Loss

    def totals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return float64 sums over the rows that `metrics` needs; sums of parts add up to the sums of the whole.

        outputs: (B, K), targets: (B,). Classification: rows, loss, hits. Regression: rows, loss, squared error, y, y^2.
        """
        num_rows = len(targets)
        loss = self.loss(outputs, targets).double() * num_rows
        if self.task == "classification":
            hits = (outputs.argmax(dim=1) == targets).sum().double()
            return torch.stack([loss.new_tensor(num_rows), loss, hits])
        y = targets.double()
        error = ((outputs.squeeze(-1).double() - y) ** 2).sum()
        return torch.stack([loss.new_tensor(num_rows), loss, error, y.sum(), (y * y).sum()])

    def no_totals(self, device: torch.device) -> Tensor:
        """Return the sums over no rows."""
        return torch.zeros(3 if self.task == "classification" else 5, dtype=torch.float64, device=device)

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Return the means: `loss`, and `accuracy` or `r2`."""
        num_rows, loss, *rest = totals.tolist()
        if self.task == "classification":
            return {"loss": loss / num_rows, "accuracy": rest[0] / num_rows}
        error, y_sum, y_squares = rest
        spread = y_squares - y_sum * y_sum / num_rows
        if spread > 0:
            r2 = 1 - error / spread
        else:
            r2 = 1.0 if error == 0 else 0.0  # constant targets: scikit-learn's convention
        return {"loss": loss / num_rows, "r2": r2}


def build_objective(loss: str, task: Task) -> Objective:
    """Return the objective of a spec's `training.loss` on a source's task."""
    return Objective(task=task, loss=LOSSES[AUTO[task] if loss == "auto" else loss])

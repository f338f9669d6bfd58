"""An exercise: the same model, rows, draws and steps for everyone. Needs numpy and torch alone: rivals run it in their own environments.

A folder holds `exercise.json` (the numbers below), `weights.npz` (where training begins) and, unless nothing is trained,
`rows.npz` (see write_exercise.py). Whoever does the exercise writes `result.json` into it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class Exercise:
    """Federated averaging of a multi-layer perceptron, on one torch thread."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._folder = folder
        options = json.loads((folder / "exercise.json").read_text())
        self.rounds: int = options["rounds"]
        self.clients: int = options["clients"]
        self.per_round: int = options["per_round"]
        self.draws: list[list[int]] = options["draws"]
        """The clients of each round. Rivals draw by themselves."""
        self.local_epochs: int = options["local_epochs"]
        """0: nothing is trained; each client returns all of the weights changed a little."""
        self.batch_size: int = options["batch_size"]
        self.lr: float = options["lr"]
        self.seed: int = options["seed"]
        self._rows = {name: torch.from_numpy(array) for name, array in _arrays(folder / "rows.npz").items()}
        self._model: nn.Module | None = None

    def initial_weights(self) -> State:
        return {name: torch.from_numpy(array) for name, array in _arrays(self._folder / "weights.npz").items()}

    def model(self) -> nn.Module:
        """Dense layers with relu between them, as wide as the weights say. The weights themselves are whatever they were."""
        if self._model is None:
            shapes = [w.shape for name, w in self.initial_weights().items() if name.endswith("weight")]
            layers: list[nn.Module] = [nn.Flatten()]
            for width, inputs in shapes:
                layers += [nn.Linear(inputs, width), nn.ReLU()]
            self._model = nn.Sequential(*layers[:-1])
        return self._model

    def count_rows(self, client: int) -> int:
        """Return how many rows the client trains on."""
        return int(self._rows["bounds"][client + 1] - self._rows["bounds"][client])

    def train(self, weights: Mapping[str, Tensor], number: int, client: int) -> tuple[State, int]:
        """Return what `client` makes of the weights in round `number` (from 1), and its count of rows."""
        if not self.local_epochs:
            return {name: tensor + 1e-3 * (client + 1) for name, tensor in weights.items()}, 1
        model, loss_of = self.model(), nn.CrossEntropyLoss()
        model.load_state_dict(weights)
        model.train()
        x, y = self._rows["x"], self._rows["y"]
        own = self._rows["positions"][self._rows["bounds"][client] : self._rows["bounds"][client + 1]]
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        # As trainer.training.seeded_generator: the same order of rows.
        state = np.random.SeedSequence([3, self.seed, number, client]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> 1))
        for _ in range(self.local_epochs):
            for rows in torch.split(own[torch.randperm(len(own), generator=generator)], self.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(loss_of(model(x[rows]), y[rows]))
                optimizer.step()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}, len(own)

    @property
    def has_test_rows(self) -> bool:
        return bool(self._rows)

    def accuracy(self, weights: Mapping[str, Tensor]) -> float | None:
        """Return the share of the test rows that the weights tell right; None where there are none."""
        if not self.has_test_rows:
            return None
        self.model().load_state_dict(weights)
        with torch.inference_mode():
            return float((self.model()(self._rows["test_x"]).argmax(1) == self._rows["test_y"]).float().mean())

    def write_result(self, times: list[float], accuracies: list[float | None]) -> None:
        """Write the times (Unix seconds) at which the first round began and each round ended, and the rounds' accuracies."""
        result = {"times": times, "accuracies": accuracies, "written": time.time()}
        draft = self._folder / "result.new"
        draft.write_text(json.dumps(result))
        draft.replace(self._folder / "result.json")


def _arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of an NPZ file; none where there is no file."""
    if not path.exists():
        return {}
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}

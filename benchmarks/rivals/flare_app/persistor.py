"""FLARE's side of the server: where weights come from, and when each round's are there."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from exercise import Exercise
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor


class ExercisePersistor(ModelPersistor):
    """FLARE's FedAvg loads the model once, and saves it after each round."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self._exercise: Exercise | None = None
        self._times: list[float] = []
        self._accuracies: list[float | None] = []

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        self._exercise = Exercise(Path(self.folder))
        weights = {name: tensor.numpy() for name, tensor in self._exercise.initial_weights().items()}
        self._times.append(time.time())
        return make_model_learnable(weights, {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        assert self._exercise  # FLARE loads before it saves
        self._times.append(time.time())
        weights = {name: torch.as_tensor(array) for name, array in model[ModelLearnableKey.WEIGHTS].items()}
        self._accuracies.append(self._exercise.accuracy(weights))
        if len(self._accuracies) == self._exercise.rounds:
            self._exercise.write_result(self._times, self._accuracies)

"""Flower's side of the server: its own FedAvg."""

from __future__ import annotations

import time
from pathlib import Path

from flower_app.exercise import Exercise
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    exercise = Exercise(Path(str(context.run_config["folder"])))
    times: list[float] = []
    accuracies: list[float | None] = []

    def note(server_round: int, arrays: ArrayRecord) -> None:
        """Flower calls it before the first round and after each."""
        times.append(time.time())
        if server_round:
            measured = exercise.accuracy(arrays.to_torch_state_dict()) if exercise.has_test_rows else None
            accuracies.append(measured)

    strategy = FedAvg(
        fraction_train=exercise.per_round / exercise.clients,
        fraction_evaluate=float(context.run_config["evaluate"]),
        min_train_nodes=exercise.per_round,
        min_available_nodes=exercise.clients,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(exercise.initial_weights()),
        num_rounds=exercise.rounds,
        evaluate_fn=note,
    )
    exercise.write_result(times, accuracies)

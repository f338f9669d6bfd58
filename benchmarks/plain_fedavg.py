"""What others are compared with: FedAvg as a plain loop over a round's clients in one process, on one thread.

    python benchmarks/plain_fedavg.py EXERCISE

Rows, draws and steps are those of rivals/exercise.py. Writes the result as rivals do; the measuring of the test rows is
left out of the time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from benchmarks.rivals.exercise import Exercise


def main(folder: str) -> None:
    exercise = Exercise(Path(folder))
    weights = exercise.initial_weights()
    now, times, accuracies = 0.0, [0.0], []
    for number in range(1, exercise.rounds + 1):
        started = time.perf_counter()
        mean = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        drawn = exercise.draws[number - 1]
        num_rows = sum(exercise.count_rows(client) for client in drawn)
        for client in drawn:
            trained, num_examples = exercise.train(weights, number, client)
            for name, tensor in trained.items():
                mean[name] += tensor * (num_examples / num_rows)
        weights = mean
        now += time.perf_counter() - started
        times.append(now)
        accuracies.append(exercise.accuracy(weights))
    exercise.write_result(times, accuracies)


if __name__ == "__main__":
    main(*sys.argv[1:])

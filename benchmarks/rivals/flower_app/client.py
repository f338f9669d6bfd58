"""Flower's side of the clients."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flower_app.exercise import Exercise
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@cache
def exercise_in(folder: str) -> Exercise:
    """Loaded once a process: the simulation's actors stay from message to message."""
    return Exercise(Path(folder))


@app.train()
def train(message: Message, context: Context) -> Message:
    exercise = exercise_in(str(context.run_config["folder"]))
    number, client = int(message.content["config"]["server-round"]), int(context.node_config["partition-id"])
    weights, num_examples = exercise.train(message.content["arrays"].to_torch_state_dict(), number, client)
    metrics = MetricRecord({"num-examples": num_examples})
    return Message(content=RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    exercise = exercise_in(str(context.run_config["folder"]))
    accuracy = exercise.accuracy(message.content["arrays"].to_torch_state_dict())
    metrics = MetricRecord({"num-examples": 1, "accuracy": accuracy or 0.0})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

"""How the names of the spec read on a page: registered entries, units, and what a combination of them is called."""

from __future__ import annotations

from trainer.sections.disagreement import counted
from trainer.sections.federated import Federated
from trainer.sections.strategy import ServerSgd

WORDS = {
    "adamw": "AdamW",
    "bfloat16": "bfloat16",
    "cnn": "CNN",
    "cross_entropy": "Cross-entropy",
    "ddp": "DDP",
    "fedavg": "FedAvg",
    "fedbuff": "FedBuff",
    "fedbn": "FedBN",
    "fednova": "FedNova",
    "fedprox": "FedProx",
    "float32": "float32",
    "fusion": "Weighted fusion",
    "gelu": "GELU",
    "iid": "IID",
    "int8": "int8",
    "krum": "Krum, Multi-Krum",
    "mean": "Weighted mean",
    "median": "Coordinate median",
    "mlp": "MLP",
    "mse": "Mean squared error",
    "norm_bound": "Norm bounding",
    "one_shot": "One-shot fusion",
    "q": "q",
    "qfedavg": "q-FedAvg",
    "relu": "ReLU",
    "scaffold": "SCAFFOLD",
    "sgd": "SGD",
    "top_k": "Top-k",
}
"""Names of the spec that are not read as plain words."""
WORDS_IN = {
    "encoding": {
        "float32": "float32 (as they are)",
        "bfloat16": "bfloat16 (half the bytes)",
        "int8": "int8 (a quarter of the bytes)",
        "top_k": "Top-k (the largest changes)",
    },
    "server_optimizer": {
        "sgd": "SGD (FedAvg, FedAvgM)",
        "adagrad": "Adagrad (FedAdagrad)",
        "adam": "Adam (FedAdam)",
        "yogi": "Yogi (FedYogi)",
    },
}
"""Names that people know by another one in this field."""
UNITS = {"_seconds": "s", "_bytes": "bytes"}
"""Suffix of a field's name -> its unit."""
UNITS_OF = {"evaluate_every": "rounds", "patience": "rounds"}
"""Field -> its unit, where the name does not say it."""


def word(value: str, field: str = "") -> str:
    """How a name of the spec reads on a page, in the field that holds it. A metric's name stays as the charts have it."""
    if found := WORDS_IN.get(field, {}).get(value) or WORDS.get(value):
        return found
    return value if "/" in value else value.replace("_", " ").capitalize()


def unit_of(field: str) -> str:
    return UNITS_OF.get(field) or next((unit for suffix, unit in UNITS.items() if field.endswith(suffix)), "")


def bare_name(field: str) -> str:
    """The field's name without its unit."""
    return next((field.removesuffix(suffix) for suffix in UNITS if field.endswith(suffix)), field)


def algorithm_of(federated: Federated) -> str:
    """The name under which papers know these choices: "FedAdam", "FedProx with FedAdam, Bulyan"."""
    strategy, server = word(federated.strategy.name), federated.server_optimizer
    if isinstance(server, ServerSgd):
        on_server = "FedAvgM" if server.momentum else ""
    else:
        on_server = f"Fed{word(server.name)}"
    name = strategy
    if on_server:
        name = on_server if federated.strategy.name == "fedavg" else f"{strategy} with {on_server}"
    rule = federated.aggregator
    if rule.name == "mean":
        return name
    if rule.name == "krum":
        return f"{name}, {'Krum' if rule.select == 1 else 'Multi-Krum'}"
    return f"{name}, {word(rule.name).lower() if rule.name != 'bulyan' else 'Bulyan'}"


def traits_of(federated: Federated) -> list[str]:
    """What is told of a job beside its algorithm, in words: "30 simulated clients", "Secure aggregation"."""
    simulated = federated.clients.simulate
    traits = {
        counted(simulated or 0, "simulated client"): simulated,
        "Secure aggregation": federated.secure_aggregation,
        "Central differential privacy": federated.privacy,
        "Local differential privacy": federated.local_privacy,
    }
    return [trait for trait, there in traits.items() if there]

"""Jobs that run at once on what every installation has. Each is a spec as one would write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    title: str
    about: str
    spec: dict[str, Any]


PRESETS: dict[str, Preset] = {
    "digits-federated": Preset(
        title="Digits, federated",
        about="Two clients, each with half of the handwritten digits, train an MLP by federated averaging.",
        spec={
            "name": "Digits, federated",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [200, 200]}},
            "data": {"source": "digits", "partition": {"scheme": "iid"}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32},
            "federated": {"rounds": 20, "local_epochs": 1, "clients": {"num": 2}},
        },
    ),
    "digits-distributed": Preset(
        title="Digits, distributed",
        about="One training over the ranks of two nodes, gradients averaged at each step.",
        spec={
            "name": "Digits, distributed",
            "mode": "distributed",
            "model": {"name": "mlp", "options": {"hidden": [200, 200]}},
            "data": {"source": "digits"},
            "training": {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 32},
            "distributed": {"nodes": 2, "processes_per_node": 1, "epochs": 10},
        },
    ),
    "diabetes-regression": Preset(
        title="Diabetes regression",
        about="A linear model of disease progression over two clients; the curves are loss and R².",
        spec={
            "name": "Diabetes regression",
            "mode": "federated",
            "model": {"name": "linear"},
            "data": {"source": "diabetes"},
            "training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 32},
            "federated": {"rounds": 30, "clients": {"num": 2}},
        },
    ),
    "non-iid-cnn": Preset(
        title="Non-IID CNN",
        about="Each client sees few of the ten digits: watch the clients' curves part, and the mean hold.",
        spec={
            "name": "Non-IID CNN",
            "mode": "federated",
            "model": {"name": "cnn", "options": {"channels": [16, 32], "hidden": 64}},
            "data": {"source": "digits", "partition": {"scheme": "shards", "shards_per_client": 2}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.5}, "batch_size": 32},
            "federated": {"rounds": 30, "local_epochs": 2, "clients": {"num": 2}},
        },
    ),
}

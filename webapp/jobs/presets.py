"""Jobs to start from, on data that every installation has. Each is a spec as one would write it.

All but the last run at once on the two nodes of a fresh installation; its text says what it needs.
"""

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
            "federated": {"rounds": 20, "local_epochs": 1, "clients": {"num": 2}, "server_data": "digits"},
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
    "sgd-classifier": Preset(
        title="Linear SGD classifier",
        about="Hinge loss and plain SGD on the Wisconsin breast cancer data (OpenML's wdbc): as good as scikit-learn's SGDClassifier on the pooled rows.",
        spec={
            "name": "Linear SGD classifier, federated",
            "mode": "federated",
            "model": {"name": "linear"},
            "data": {"source": "breast_cancer", "test_fraction": 0.2, "partition": {"scheme": "iid"}},
            "training": {
                "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0001},
                "batch_size": 32,
                "loss": "hinge",
            },
            "federated": {"rounds": 20, "local_epochs": 2, "clients": {"num": 2}},
        },
    ),
    "fedadam-non-iid": Preset(
        title="FedAdam, non-IID",
        about="Most digits lie with one client or the other. The server takes the mean update as a gradient and steps with Adam.",
        spec={
            "name": "FedAdam on non-IID digits",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [64]}},
            "data": {"source": "digits", "partition": {"scheme": "dirichlet", "alpha": 0.1}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 32},
            "federated": {
                "rounds": 30,
                "local_epochs": 2,
                "server_optimizer": {"name": "adam", "lr": 0.03},
                "clients": {"num": 2},
            },
        },
    ),
    "fedprox-shards": Preset(
        title="FedProx, label shards",
        about="Each client has half of the digits and trains five epochs a round; a pull towards the global weights keeps them together.",
        spec={
            "name": "FedProx on label shards",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [64]}},
            "data": {"source": "digits", "partition": {"scheme": "shards", "shards_per_client": 1}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.05}, "batch_size": 32},
            "federated": {
                "rounds": 20,
                "local_epochs": 5,
                "strategy": {"name": "fedprox", "mu": 0.1},
                "clients": {"num": 2},
            },
        },
    ),
    "scaffold-shards": Preset(
        title="SCAFFOLD, label shards",
        about="The same split as FedProx's: control variates take the clients' drift out of their steps, and fewer rounds are needed.",
        spec={
            "name": "SCAFFOLD on label shards",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [64]}},
            "data": {"source": "digits", "partition": {"scheme": "shards", "shards_per_client": 1}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.05}, "batch_size": 32},
            "federated": {
                "rounds": 20,
                "local_epochs": 5,
                "strategy": {"name": "scaffold"},
                "clients": {"num": 2},
            },
        },
    ),
    "digits-simulation": Preset(
        title="A hundred simulated clients",
        about="One node plays 100 virtual clients with two digits each, 10 of them a round: see how an algorithm does among many.",
        spec={
            "name": "Digits, 100 simulated clients",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [64]}},
            "data": {"source": "digits", "partition": {"scheme": "shards", "shards_per_client": 2}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 10},
            "federated": {
                "rounds": 20,
                "local_epochs": 5,
                "clients": {"simulate": 100, "per_round": 10, "num": 1, "processes": 2},
            },
        },
    ),
    "krum-five-nodes": Preset(
        title="Multi-Krum, five nodes",
        about="One of five clients may lie: each round keeps the three updates that agree best. Needs five nodes (make up NODES=5).",
        spec={
            "name": "Multi-Krum, five nodes",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"hidden": [64]}},
            "data": {"source": "digits", "partition": {"scheme": "iid"}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32},
            "federated": {
                "rounds": 20,
                "local_epochs": 2,
                "aggregator": {"name": "krum", "attackers": 1, "select": 3},
                "clients": {"num": 5, "quorum": 1.0},
            },
        },
    ),
}

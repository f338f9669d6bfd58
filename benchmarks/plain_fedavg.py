"""What bench_federated.py compares with: FedAvg as a plain loop over the clients in one process, on one thread.

    python benchmarks/plain_fedavg.py SPEC.json ROWS.npz OUT.json

Model, rows and draws come from the same builders, so that both sides compute the same. Writes the seconds from the first
round to the end of the last, and the accuracy of the final weights on the test rows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from trainer.data.files import describe_file
from trainer.data.prepare import prepare_client
from trainer.data.source import Source
from trainer.models import build_model
from trainer.spec import JobSpec
from trainer.training import seeded_generator


def main(spec_file: str, rows_file: str, out_file: str) -> None:
    torch.set_num_threads(1)
    spec = JobSpec.model_validate_json(Path(spec_file).read_text())
    assert spec.federated is not None
    path = Path(rows_file)
    source = Source(description=describe_file(spec.data.source, path, "y", "classification"), path=path)
    num = spec.federated.clients.num
    clients = [prepare_client(spec, source, client, num) for client in range(num)]
    model = build_model(spec.model, source.description, spec.seed)
    loss_of = nn.CrossEntropyLoss()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    num_rows = sum(len(data.train_y) for data in clients)
    started = time.perf_counter()
    for number in range(1, spec.federated.rounds + 1):
        mean = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for client, data in enumerate(clients):
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=spec.training.optimizer.lr)
            generator = seeded_generator(spec.seed, number, client)
            for _ in range(spec.federated.local_epochs):
                order = torch.randperm(len(data.train_y), generator=generator)
                for rows in torch.split(order, spec.training.batch_size):
                    optimizer.zero_grad()
                    torch.autograd.backward(loss_of(model(data.train_x[rows]), data.train_y[rows]))
                    optimizer.step()
            for name, tensor in model.state_dict().items():
                mean[name] += tensor * (len(data.train_y) / num_rows)
        weights = mean
    seconds = time.perf_counter() - started
    model.load_state_dict(weights)
    with torch.inference_mode():
        right = (model(clients[0].test_x).argmax(1) == clients[0].test_y).float().mean().item()
    Path(out_file).write_text(json.dumps({"seconds": seconds, "accuracy": right}))


if __name__ == "__main__":
    main(*sys.argv[1:])

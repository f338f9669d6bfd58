"""What bench_ddp.py compares with: the same training as a plain script under torchrun, without any of Trainmaster's loop.

    torchrun --nproc-per-node 2 benchmarks/plain_ddp.py SPEC.json OUT.json

Rank 0 writes the seconds of every epoch, evaluation included, divided by its steps. Model and rows come from the same builders, so that both sides compute the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.data.prepare import prepare_rank
from trainer.data.source import Source
from trainer.models import build_model
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec


def main(spec_file: str, out_file: str) -> None:
    spec = JobSpec.model_validate_json(Path(spec_file).read_text())
    assert spec.distributed is not None
    source = Source(description=BUILTIN_SOURCES[spec.data.source])
    data = prepare_rank(spec, source)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(build_model(spec.model, source.description, spec.seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.training.optimizer.lr)
    loss_of = nn.CrossEntropyLoss()
    losses: list[float] = []
    ends: list[float] = []
    for epoch in range(spec.distributed.epochs):
        order = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(epoch))
        for joined in torch.split(order, spec.training.batch_size * world_size):
            rows = joined.tensor_split(world_size)[rank]
            optimizer.zero_grad()
            loss = loss_of(model(data.train_x[rows]), data.train_y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        test_y = data.test_y[rank::world_size]
        with torch.inference_mode():
            outputs = model.module(data.test_x[rank::world_size])
            totals = torch.stack([loss_of(outputs, test_y) * len(test_y), (outputs.argmax(1) == test_y).sum()])
        dist.all_reduce(totals)
        if rank == 0:
            print(epoch, *(totals / len(data.test_y)).tolist(), flush=True)
        ends.append(time.perf_counter())
    if rank == 0:
        steps = len(losses) / len(ends)
        Path(out_file).write_text(json.dumps([(b - a) / steps for a, b in pairwise(ends)]))
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a plain exit aborts now and then: gloo's threads may outlive what they use (torch 2.13)


if __name__ == "__main__":
    main(*sys.argv[1:])

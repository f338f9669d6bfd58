"""What a rank of the DDP tests runs, in a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from trainer.data.source import Source
from trainer.distributed.ddp import train_rank
from trainer.protocol import Points
from trainer.spec import JobSpec
from trainer.telemetry import MetricLog, unpack_points


def run_cases(rank: int, world_size: int, cases: list[tuple[str, str, list[str], int]], folder: str) -> None:
    """Run each case (name, spec, a source for each rank, port) and write what became of it to <name>-<rank>.json."""
    torch.set_num_threads(1)
    for name, spec, sources, port in cases:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        curves: dict[str, list[tuple[int, float]]] = {}

        def hear(head: Points, data: bytes, curves: dict[str, list[tuple[int, float]]] = curves) -> None:
            for series in unpack_points(head, data):
                curves.setdefault(series.name, []).extend(
                    zip(series.steps.tolist(), series.values.tolist(), strict=True)
                )

        error = ""
        with MetricLog(1, f"rank {rank}", hear) as log:
            try:
                source = Source.model_validate_json(sources[rank])
                train_rank(JobSpec.model_validate_json(spec), source, log, Path(folder) / f"{name}.safetensors")
            except ValueError as problem:
                error = str(problem)
        (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps({"curves": curves, "error": error}))

"""The ranks of a job in the agent's own runners, without an agent, a broker or a server beside them.

    python benchmarks/lone_ranks.py SPEC.json OUT.json

Writes the seconds of every epoch, evaluation included, divided by its steps. What a runner costs a training is the
difference to plain_ddp.py; what the rest of a stack costs on the same cores is the difference to a job.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainer.agent import forge
from trainer.agent.runner import Runner
from trainer.agent.work import RankWork
from trainer.data.source import Source
from trainer.message import Message
from trainer.protocol import Points
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from trainer.telemetry import unpack_points


def main(spec_file: str, out_file: str) -> None:
    spec = JobSpec.model_validate_json(Path(spec_file).read_text())
    forge.scrub_environment(threads=1)
    forge.warm_up()
    ends: list[tuple[int, int]] = []

    def post(message: Message, data: bytes = b"") -> None:
        if isinstance(message, Points):
            evaluations = [series for series in unpack_points(message, data) if series.name == "test/loss"]
            ends.extend((int(step), int(at)) for e in evaluations for step, at in zip(e.steps, e.times_ms, strict=True))

    with tempfile.TemporaryDirectory() as folder:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meeting = {
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        runners = [
            Runner(
                RankWork(
                    attempt_id=1,
                    spec=spec,
                    source=Source(description=BUILTIN_SOURCES[spec.data.source]),
                    log_source=f"rank {rank}",
                    model_path=Path(folder, "model.safetensors"),
                    threads=1,
                    environment=meeting | {"RANK": str(rank)},
                ),
                Path(folder),
                post,
            )
            for rank in range(2)
        ]
        for runner in runners:
            runner.ended.wait()
            assert runner.all_done, runner.reason
    Path(out_file).write_text(
        json.dumps([(b - a) / 1000 / (last - first) for (first, a), (last, b) in pairwise(sorted(ends))])
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

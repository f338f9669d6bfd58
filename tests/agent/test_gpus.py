"""Which GPUs are lent: the machine of these tests may have none, so the pool is asked, not the driver."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.agent.jobs import distributed_spec, federated_spec
from tests.agent.test_outbox import FACTS
from trainer.agent.config import Catalogue, NodeConfig
from trainer.agent.distributed import DistributedAttempt
from trainer.agent.federated import FederatedAttempt
from trainer.agent.home import Home
from trainer.agent.ledger import Ledger
from trainer.agent.node import GpuPool, Node, Refused
from trainer.agent.runner import RunnerEnded
from trainer.message import BlobRef
from trainer.protocol import RunRanks, TrainRound

ONE_GPU = {"gpus_per_process": 1}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node of one GPU that nobody hears."""
    unused = cast(Any, None)
    no_budgets = Ledger(tmp_path / "ledger", (), name="n", node_id="id-n")
    no_masks = cast(Any, SimpleNamespace(has_begun=lambda _: False, end=lambda _: None))
    deaf = cast(Any, SimpleNamespace(put=lambda *_: None))
    return Node(
        "n", Home(tmp_path), FACTS, Catalogue(NodeConfig()), unused, unused, deaf, GpuPool(1), no_budgets, no_masks
    )


def test_a_pool_lends_each_gpu_once() -> None:
    pool = GpuPool(3)
    assert pool.take(2) == [0, 1]
    with pytest.raises(Refused, match="The job needs 2 GPUs here, and 1 of 3 are free"):
        pool.take(2)
    pool.give_back([0])
    assert pool.take(2) == [0, 2]


def test_a_stopped_attempt_frees_its_gpus_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports `released` while its task still sits in a rendezvous, and the server sends the next job."""
    meets, ends = threading.Event(), threading.Event()

    def meet(*_: object) -> None:
        meets.set()
        ends.wait(20)

    monkeypatch.setattr(DistributedAttempt, "_run", meet)
    spec = distributed_spec(resources=ONE_GPU)
    attempt = DistributedAttempt(node, RunRanks(job_id=1, attempt_id=1, spec=spec, group_rank=0, num_groups=2))
    task = threading.Thread(target=attempt.run)
    task.start()
    assert meets.wait(10)
    attempt.stop()
    assert node.gpus.take(1) == [0]
    ends.set()
    task.join()
    with pytest.raises(Refused):  # the end of the old task takes nothing from the new job
        node.gpus.take(1)


def test_a_round_that_is_stopped_before_its_runner_starts_takes_no_gpu(node: Node) -> None:
    attempt = FederatedAttempt(node, 1)
    weights = BlobRef(digest="0" * 64, size_bytes=1)
    spec = federated_spec(resources=ONE_GPU)
    message = TrainRound(job_id=1, attempt_id=1, round=1, spec=spec, client=0, num_clients=2, weights=weights)
    attempt.stop()
    with pytest.raises(RunnerEnded):
        attempt._environment(message)
    assert node.gpus.take(1) == [0]

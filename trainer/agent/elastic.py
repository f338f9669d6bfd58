"""The torch elastic agent of one node, whose workers are our runners.

Torch's own LocalElasticAgent ends single processes (not groups) with 30 s of patience, and carries a worker's exception
home in a pickle. The base class has the hooks for exactly this: rendezvous, ranks, monitoring and the exit barrier are
torch's, starting and ending a worker is ours, the same as for a federated client.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousGracefulExitError

from trainer.agent.runner import Runner

EXIT_BARRIER_SECONDS = 60.0
"""How long a node whose ranks are done waits for the others: group rank 0 holds the store that all ranks talk to."""

StartRank = Callable[[int, dict[str, str]], Runner]
"""(local rank, environment) -> the running rank."""


class RankAgent(SimpleElasticAgent):
    """Runs one node's ranks. `stop` may be called from any thread, at any time."""

    def __init__(self, spec: WorkerSpec, start_rank: StartRank) -> None:
        super().__init__(spec, exit_barrier_timeout=EXIT_BARRIER_SECONDS)
        self._start_rank = start_rank
        self._lock = threading.Lock()
        self._stopped = False
        self.runners: dict[int, Runner] = {}
        """By global rank."""

    def stop(self) -> None:
        """End all ranks. `run` returns soon after with a failed result, or raises RendezvousGracefulExitError."""
        with self._lock:
            self._stopped = True
        self._shutdown()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = {}
        for worker in worker_group.workers:
            environment = self._environment_of(worker_group, worker.local_rank, worker.global_rank, worker.world_size)
            with self._lock:  # so that `stop` finds every runner that was started
                if self._stopped:
                    raise RendezvousGracefulExitError("stopped before the start")
                runner = self._start_rank(worker.local_rank, environment)
                self.runners[worker.global_rank] = runner
            started[worker.local_rank] = runner.pid
        return started

    def _environment_of(self, group: WorkerGroup, local_rank: int, rank: int, world_size: int) -> dict[str, str]:
        """Return what torch's env:// initialisation reads, as LocalElasticAgent sets it."""
        spec = group.spec
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "GROUP_RANK": str(group.group_rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(spec.local_world_size),
            "GROUP_WORLD_SIZE": str(group.group_world_size),
            "MASTER_ADDR": str(group.master_addr),
            "MASTER_PORT": str(group.master_port),
            "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_RESTART_COUNT": str(spec.max_restarts - self._remaining_restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
            "TORCHELASTIC_USE_AGENT_STORE": str(spec.rdzv_handler.use_agent_store),
        }

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ended = {rank: runner for rank, runner in self.runners.items() if runner.ended.is_set()}
        failures = {
            rank: ProcessFailure(local_rank=position, pid=runner.pid, exitcode=1, error_file="")
            for position, (rank, runner) in enumerate(ended.items())
            if not runner.all_done
        }
        if failures or self._stopped:
            return RunResult(WorkerState.FAILED, failures=failures)
        if len(ended) == len(self.runners):
            return RunResult(WorkerState.SUCCEEDED, return_values=dict.fromkeys(ended))
        return RunResult(WorkerState.HEALTHY)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """End what still runs, side by side, so that ten ranks that hang cost one grace period, not ten."""
        with self._lock:
            running = [runner for runner in self.runners.values() if not runner.ended.is_set()]
        stops = [threading.Thread(target=runner.stop, daemon=True) for runner in running]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()

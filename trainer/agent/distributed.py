"""One attempt of a distributed job, or of a simulation, on this node: its ranks, under torch elastic."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from trainer.agent.blobs import BlobProblem, patiently
from trainer.agent.node import Node, Refused
from trainer.agent.runner import Runner
from trainer.agent.server import PASSING, ServerRefusal
from trainer.agent.simulated import Simulation
from trainer.agent.work import RankWork
from trainer.data.source import Source
from trainer.protocol import OFFLINE_AFTER_SECONDS, ArtifactOffer, Rendezvous, RunRanks, RunReport

if TYPE_CHECKING:
    from trainer.agent.elastic import RankAgent

logger = logging.getLogger(__name__)

MEETING_SECONDS = 60.0
"""How long a node waits for the others of its gang before it gives up with a sentence."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.2
LOST_PEER_SECONDS = OFFLINE_AFTER_SECONDS + 10
"""A node whose ranks only lost another rank lets that one's node speak first: it knows the cause. Where that node is gone, the
server notices by its silence and tries again; a report from here before that would fail the job for good."""
MODEL_FILE = "model.safetensors"


class RanksFailed(Exception):
    """The ranks did not end well; the message is a sentence."""


class DistributedAttempt:
    """This node's ranks. `run` runs in the thread of its Celery task; `stop` may come from any other."""

    def __init__(self, node: Node, message: RunRanks) -> None:
        self.attempt_id = message.attempt_id
        self.slots = message.spec.slots_per_node
        self.stopped = threading.Event()
        self.used_at = time.monotonic()
        self.idle = False
        self._node = node
        self._message = message
        self._folder = node.home.run_folder(message.attempt_id)
        self._lock = threading.Lock()
        self._elastic: RankAgent | None = None
        self._gpus: list[int] = []
        self._started = threading.Event()
        self._simulation: Simulation | None = None

    def run(self) -> None:
        """Run the ranks to their end and report it."""
        try:
            source = self._node.admit(self._message.spec)
            self._gpus = self._node.gpus.take(self._message.spec.resources.gpus_per_process * self.slots)
            with contextlib.ExitStack() as stack:
                if self._message.start:
                    simulation = Simulation(self._node, self._message, source, self._folder, self.stopped)
                    self._simulation = stack.enter_context(simulation)
                self._run(source)
        except Refused as refused:
            self._report("refused", str(refused))
        except (RanksFailed, BlobProblem, ServerRefusal, *PASSING) as error:
            self._report("failed", f"{self._node.name}: {error}")
        else:
            self._report("finished")
        finally:
            self._give_back_gpus()

    def stop(self) -> None:
        """End all ranks. `run` then returns without a report of its own."""
        self.stopped.set()
        with self._lock:
            elastic = self._elastic
        if elastic:
            elastic.stop()
        # Here as well: `run` may sit in a rendezvous for a minute, and the next job has these GPUs already.
        self._give_back_gpus()

    def _give_back_gpus(self) -> None:
        with self._lock:
            gpus, self._gpus = self._gpus, []
        self._node.gpus.give_back(gpus)

    def _run(self, source: Source) -> None:
        # Here, not above: the agent starts without waiting for torch, which another thread is importing meanwhile.
        from torch.distributed.elastic.agent.server.api import WorkerSpec
        from torch.distributed.elastic.rendezvous import RendezvousGracefulExitError
        from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

        from trainer.agent.elastic import RankAgent

        message = self._message
        meeting, _host = self._meet()
        spec = WorkerSpec(
            role="rank",
            local_world_size=self.slots,
            entrypoint="trainer.distributed.ddp",
            rdzv_handler=StaticTCPRendezvous(
                meeting.address,
                meeting.port,
                message.group_rank,
                message.num_groups,
                f"attempt-{message.attempt_id}",
                int(MEETING_SECONDS),
            ),
            max_restarts=0,
            monitor_interval=0.1,
        )
        elastic = RankAgent(spec, lambda local_rank, environment: self._start_rank(source, local_rank, environment))
        with self._lock:
            self._elastic = elastic
            if self.stopped.is_set():
                raise RanksFailed("The attempt was stopped.")
        if self._simulation:
            self._simulation.post_by(elastic.stop)
        try:
            result = elastic.run()
        except RendezvousGracefulExitError:
            raise RanksFailed("The attempt was stopped.") from None
        except Exception as error:  # torch raises its own, undocumented ones when nodes do not meet
            logger.exception("Attempt %d did not start", self.attempt_id)
            raise RanksFailed(
                f"The {message.num_groups} nodes did not meet at {meeting.address}:{meeting.port} within "
                f"{MEETING_SECONDS:.0f} s ({type(error).__name__}): is that address reachable from all of them?"
            ) from None
        if self._simulation and (problem := self._simulation.finish()):
            raise RanksFailed(problem)
        if result is None or result.is_failed():
            raise RanksFailed(self._cause(elastic))
        if 0 in elastic.runners and not self._simulation:
            self._send_model()

    def _meet(self) -> tuple[Rendezvous, object]:
        """Return where the ranks meet, and, on group rank 0, the store that holds the port open."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        node, message = self._node, self._message
        if message.group_rank == 0:
            store = TCPStore(
                node.facts.address,
                0,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=MEETING_SECONDS),
                multi_tenant=True,  # torch elastic's own handler then joins this server instead of opening another
            )
            here = Rendezvous(address=node.facts.address, port=store.port)
            patiently(lambda: node.server.announce_rendezvous(self.attempt_id, here), self.stopped)
            return here, store
        deadline = time.monotonic() + MEETING_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while time.monotonic() < deadline and not self.stopped.is_set():
            there = patiently(lambda: node.server.find_rendezvous(self.attempt_id), self.stopped)
            if there:
                return there, None
            self.stopped.wait(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        raise RanksFailed(
            f"The node of rank 0 did not say within {MEETING_SECONDS:.0f} s where the ranks meet: look at its agent's log."
        )

    def _start_rank(self, source: Source, local_rank: int, environment: dict[str, str]) -> Runner:
        gpus = self._message.spec.resources.gpus_per_process
        if gpus:
            # Each rank sees its own GPU only, as device 0.
            mine = self._gpus[local_rank * gpus : (local_rank + 1) * gpus]
            environment |= {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine)), "LOCAL_RANK": "0"}
        work = RankWork(
            attempt_id=self.attempt_id,
            spec=self._message.spec,
            source=source,
            log_source=f"rank {environment['RANK']}",
            model_path=self._folder / MODEL_FILE,
            # Clients of a simulation train side by side: one thread each gains most, and gives the same bits on every node.
            threads=1 if self._simulation else self._node.threads,
            environment=environment | self._node.network_environment(),
            simulation=self._simulation.plan if self._simulation else None,
        )
        on_rounds = self._simulation.put if self._simulation else lambda _: None
        return Runner(work, self._folder, self._node.outbox.put, self._say_started, on_rounds)

    def _say_started(self) -> None:
        if not self._started.is_set():
            self._started.set()
            self._report("started")

    def _cause(self, elastic: RankAgent) -> str:
        """Name the rank that broke first of its own accord."""
        own = [(rank, r) for rank, r in elastic.runners.items() if not r.all_done and not r.was_stopped]
        causes = [(rank, r) for rank, r in own if not (r.broke and r.broke.lost_peer)]
        if causes:
            return f"Rank {causes[0][0]}: {causes[0][1].reason}"
        self.stopped.wait(LOST_PEER_SECONDS)
        if own:
            return f"Rank {own[0][0]} lost the connection to another rank."
        return "The ranks were stopped."

    def _send_model(self) -> None:
        node = self._node
        digest = node.blobs.deliver(self._folder / MODEL_FILE, self.stopped)
        offer = ArtifactOffer(name=MODEL_FILE, digest=digest)
        verdict = patiently(lambda: node.server.offer_artifact(self.attempt_id, offer), self.stopped)
        if not verdict.accepted:
            raise RanksFailed(f"The server did not take the model: {verdict.reason}")

    def _report(self, kind: Literal["started", "finished", "failed", "refused"], text: str = "") -> None:
        if not self.stopped.is_set():
            self._node.report(RunReport(attempt_id=self.attempt_id, kind=kind, text=text[:2000]))

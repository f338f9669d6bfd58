"""One rank of a simulation: virtual clients trained side by side, one round after another (contract: `World`).

It runs inside a torch elastic worker. All ranks hold the same rows and the same weights, and draw alike; each trains its share
of a round's clients and leaves their updates, encoded as a real client's, in files. Rank 0 sums them in the order of the
clients with the strategy that the server has for real nodes, so that the same seed gives the same bits as those.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from trainer.data.source import Source
from trainer.federated.check import UpdateRefused, check_update
from trainer.federated.draw import draw_clients
from trainer.federated.early_stop import Measured, is_evaluated, why_last, worth_keeping
from trainer.federated.kept import keeps_something
from trainer.federated.local_round import LocalTrainer
from trainer.federated.result import ClientResult
from trainer.models import weights_of
from trainer.sections.federated import Federated
from trainer.simulation.choose import build_executor
from trainer.simulation.kept import VirtualFiles, take_up
from trainer.simulation.leader import Leader
from trainer.simulation.measure import measure
from trainer.simulation.messages import MOST_CLIENTS_TOLD
from trainer.simulation.plan import SimulationPlan
from trainer.simulation.results import RoundResults
from trainer.simulation.rows import VirtualRows, share_rows
from trainer.simulation.share_out import share_out
from trainer.simulation.tell import OpenLog, Post, Teller
from trainer.simulation.update_files import UpdateFiles, update_file
from trainer.simulation.world import World, meeting, patience_of
from trainer.spec import JobSpec
from trainer.weights import Header, Weights

logger = logging.getLogger(__name__)


def simulate(spec: JobSpec, source: Source, plan: SimulationPlan, open_log: OpenLog, post: Post) -> None:
    """Train this rank's share of all rounds from `plan.start` on.

    Rank 0 logs the curves through `open_log` and hands finished rounds to `post`, about once a second and at the end. Raises
    SourceError where the data cannot be used, SimulationFailed where the rounds cannot go on, ValueError where the node lacks what
    the spec asks for, and torch's own errors where another rank is lost.
    """
    with meeting(patience_of(_federated(spec))) as world, closing(UpdateFiles()) as files:
        trainer = LocalTrainer(spec, source, write_file=files.write)
        if keeps_something(_federated(spec)) and world.is_first_on_node:
            take_up(plan.kept, plan.start.round)
        rows = share_rows(spec, source, world, plan.folder, trainer.device)
        trainer.check_rows(min(rows.num_rows(client) for client in range(rows.num_clients)))
        if world.rank:
            Rank(spec, plan, world, trainer, rows, files).run()
            return
        with Teller(spec, plan, open_log, post) as teller:
            if plan.share_label_counts and source.description.task == "classification":
                told = range(min(rows.num_clients, MOST_CLIENTS_TOLD))
                teller.tell_labels([rows.label_counts(client, source) for client in told])
            Rank(spec, plan, world, trainer, rows, files, Leader(spec, plan), teller).run()


class Rank:
    """What one rank does, round by round."""

    def __init__(
        self,
        spec: JobSpec,
        plan: SimulationPlan,
        world: World,
        trainer: LocalTrainer,
        rows: VirtualRows,
        files: UpdateFiles,
        leader: Leader | None = None,
        teller: Teller | None = None,
    ) -> None:
        """Rank 0 has a leader and a teller."""
        self._spec = spec
        self._federated = _federated(spec)
        self._plan = plan
        self._world = world
        self._trainer = trainer
        self._rows = rows
        self._files = files
        self._leader = leader
        self._teller = teller
        self._executor = build_executor(spec, trainer, rows, files.write)
        self._keeps = keeps_something(self._federated)
        self._metrics = [
            f"train/{name}" for name in ("loss", "accuracy" if trainer.objective.task == "classification" else "r2")
        ]
        self._like = weights_of(trainer.model)
        self._header: Header = {name: ("F32", value.shape) for name, value in self._like.items()}
        self._history = [Measured(number, value) for number, value in plan.start.history]

    def run(self) -> None:
        """Train all rounds. Collective."""
        start = self._plan.start
        weights, memory = self._take_weights()
        for number in range(start.round, start.last_round + 1):
            opened = time.time()
            results, paths = self._train(number, weights, memory)
            if self._leader:
                facts = self._leader.close(number, results.updates(paths), num_drawn=len(results.drawn))
            weights, memory = self._take_weights()
            self._files.end_round()
            metrics = results.means()
            if is_evaluated(self._federated, number, start.last_round):
                precision = self._spec.training.precision
                metrics |= measure(self._trainer, self._rows, weights, precision, self._world)
            stopped = self._why_last(number, metrics)
            if self._leader and self._teller:
                self._teller.tell(number, results, metrics, facts, self._leader.state, opened=opened, stopped=stopped)
            if stopped:
                break

    def _take_weights(self) -> tuple[Weights, Weights]:
        """Return the weights that a round starts from, and what the strategy remembers for clients. Collective."""
        state = self._leader.state if self._leader else None
        weights = self._world.share(state.weights if state else None, self._like)
        if self._federated.strategy.name != "scaffold":
            return weights, {}
        zeros = {name: value * 0 for name, value in self._like.items()}
        variate = self._world.share(dict(state.memory.get("variate", zeros)) if state else None, self._like)
        return weights, {f"variate/{name}": value for name, value in variate.items()}

    def _train(self, number: int, weights: Weights, memory: Weights) -> tuple[RoundResults, dict[int, Path]]:
        """Train this rank's share of the round. Return everybody's results, and where each client's update lies on rank 0's node."""
        drawn = self._draw(number)
        shares = self._share_out(drawn)
        folder, rank = self._plan.folder, self._world.rank
        paths = {
            client: update_file(folder, rank, place)
            for rank, share in enumerate(shares)
            for place, client in enumerate(share)
        }
        own = {client: paths[client] for client in shares[rank]}
        results = RoundResults(drawn, self._metrics)

        def note(client: int, result: ClientResult) -> None:
            results.put(client, result, counts=self._may_count(number, client, own[client]))

        self._executor.train(number, weights, memory, own, self._kept(own, number), note)
        results.gather(self._world)
        counted = set(results.counted())
        left = [(rank, paths[client]) for rank, share in enumerate(shares) for client in share if client in counted]
        for path in self._world.bring(left):
            self._files.take(path)
        return results, paths

    def _draw(self, number: int) -> list[int]:
        if self._federated.privacy is None:
            return draw_clients(self._spec, number)
        drawn = draw_clients(self._spec, number) if self._leader else None  # by the operating system's randomness
        return self._world.draw(drawn, self._federated.clients.total)

    def _share_out(self, drawn: list[int]) -> list[list[int]]:
        batch_size = self._spec.training.batch_size
        costs = {client: -(-self._rows.num_rows(client) // batch_size) for client in drawn}
        return share_out(costs, self._world.size, self._world.ranks_per_node, bound_to_nodes=self._keeps)

    def _kept(self, own: dict[int, Path], number: int) -> dict[int, tuple[VirtualFiles, int]]:
        """Return what this rank's clients kept, and of which round, where they keep something. Collective."""
        if not self._keeps:
            return {}
        # Rank 0's agent alone hears what the server has.
        said = self._plan.last_recorded() if self._leader else 0
        recorded = int(self._world.total(np.array([float(said)]))[0])
        files = {client: VirtualFiles(self._plan.kept, client, recorded) for client in own}
        return {client: (file, file.last_before(number)) for client, file in files.items()}

    def _may_count(self, number: int, client: int, update: Path) -> bool:
        """Whether the server's door would take the update."""
        if self._files.is_certain(update):
            return True  # its tensors are those of the model: only their values could be refused
        try:
            check_update(update, self._header, self._federated)
        except UpdateRefused as refused:
            logger.warning("Round %d counts without client %d: %s", number, client, refused)
            if self._keeps:
                VirtualFiles(self._plan.kept, client, 0).forget(number)
            return False
        return True

    def _why_last(self, number: int, metrics: dict[str, float]) -> str:
        start, stop = self._plan.start, self._federated.stop
        if stop and stop.metric in metrics:
            self._history = [*worth_keeping(stop, self._history), Measured(number, metrics[stop.metric])]
        return why_last(self._federated, number, start.last_round, self._history, resumed_at=start.resumed_at)


def _federated(spec: JobSpec) -> Federated:
    assert spec.federated is not None  # a simulation is a federated job
    return spec.federated

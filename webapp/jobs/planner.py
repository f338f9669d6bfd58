"""Which queued job starts where: pure, without a database.

A job gets a whole gang of nodes or none, so two gangs can never hold half of each other's slots. The queue is first come,
first served, by job id. A job that does not fit is passed by later ones that do (backfill), for `PATIENCE`; from then on
all nodes that it could use are kept for it, and it starts as soon as enough of them are free. So it waits at most for
`PATIENCE` plus the longest job that was started on those nodes before. A job that does not fit even on an empty fleet keeps
nothing, and so holds up nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

PATIENCE = timedelta(minutes=10)
"""How long later jobs may pass one that waits."""


@dataclass(frozen=True)
class Needs:
    """What a job asks of each of its nodes, and how many of them it takes."""

    num_nodes: int
    slots: int
    """Slots on each node."""
    team_id: int
    source: str | None = None
    """Data source that the node must declare; None for a built-in one, which every node has."""
    gpus: int = 0
    """GPUs on each node."""
    labels: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    """Names of the only nodes that may take part, in the order of their indices; none means all, in the order of their names."""

    shares: tuple[tuple[str, int], ...] = ()
    """Where clients are drawn by label: (label, nodes that must carry it). A node with several counts for the first."""
    unbounded_on: str | None = None
    """Data source of whose single rows the job may learn without bound: nodes with a privacy budget for it refuse such jobs."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each name stands in `names`: there may be thousands, of a fleet as large."""
        return {name: place for place, name in enumerate(self.names)}


@dataclass(frozen=True)
class QueuedJob:
    id: int
    needs: Needs
    queued_at: datetime
    before: Mapping[str, int] = field(default_factory=dict)
    """Node id -> client index in the attempt that this one goes on from: what a client keeps for itself lies on its node."""


@dataclass(frozen=True)
class PlanNode:
    """A node as the planner sees it."""

    id: str
    name: str
    slots: int
    free_slots: int
    online: bool = True
    num_gpus: int = 0
    labels: frozenset[str] = frozenset()
    team_ids: frozenset[int] = frozenset()
    """Teams that may use it; none means all."""
    sources: frozenset[str] = frozenset()
    budgets: frozenset[str] = frozenset()
    """Data sources for which its owner keeps a privacy budget."""

    def suits(self, needs: Needs) -> bool:
        """Whether the node could serve `needs` if it were online and empty."""
        return (
            self.slots >= needs.slots
            and self.num_gpus >= needs.gpus
            and needs.labels <= self.labels
            and self.admits(needs)
            and (needs.source is None or needs.source in self.sources)
            and needs.unbounded_on not in self.budgets
            and (not needs.names or self.name in needs.places)
            and (not needs.shares or self.share_label(needs) is not None)
        )

    def share_label(self, needs: Needs) -> str | None:
        """The label for which the node counts where clients are drawn by label; None where it would never be drawn."""
        return next((label for label, _ in needs.shares if label in self.labels), None)

    def admits(self, needs: Needs) -> bool:
        """Whether the team of `needs` may use the node, and so may hear of it."""
        return not self.team_ids or needs.team_id in self.team_ids


@dataclass(frozen=True)
class Placement:
    """Slots of one node for one job. `index` is the client index or group rank."""

    job_id: int
    node_id: str
    index: int
    slots: int


def plan(queue: Sequence[QueuedJob], nodes: Sequence[PlanNode], *, now: datetime) -> list[Placement]:
    """Return the placements of every job that starts now, whole gangs only. The same input gives the same plan.

    A job that goes on takes the nodes that it had, where they have room. Else emptier nodes are taken first, so that jobs
    spread; ties go by name.
    """
    free = {node.id: node.free_slots for node in nodes if node.online}
    by_name = sorted((node for node in nodes if node.online), key=lambda node: node.name)
    kept: set[str] = set()
    placements: list[Placement] = []
    # During one plan nodes only get fuller: what did not fit once need not be tried again. It keeps 10,000 like jobs cheap.
    hopeless: set[Needs] = set()
    for job in sorted(queue, key=lambda job: job.id):
        needs = job.needs
        impatient = now - job.queued_at >= PATIENCE
        if needs in hopeless and not impatient:
            continue
        suitable = [node for node in by_name if node.id not in kept and node.suits(needs)]
        room = [node for node in suitable if free[node.id] >= needs.slots]
        if gang := _gang(sorted(room, key=lambda node: (node.id not in job.before, -free[node.id])), needs):
            for index, node in _numbered(gang, job):
                free[node.id] -= needs.slots
                placements.append(Placement(job.id, node.id, index, needs.slots))
            continue
        hopeless.add(needs)
        if impatient and _gang(suitable, needs):
            kept.update(node.id for node in suitable)
    return placements


def _gang(nodes: Sequence[PlanNode], needs: Needs) -> list[PlanNode]:
    """The first of `nodes` that make a gang, with the labels that it needs; none where they make none."""
    if len(nodes) < needs.num_nodes:
        return []
    chosen: list[PlanNode] = []
    for label, share in needs.shares:
        carriers = [node for node in nodes if node.share_label(needs) == label][:share]
        if len(carriers) < share:
            return []
        chosen += carriers
    taken = {node.id for node in chosen}
    return [*chosen, *(node for node in nodes if node.id not in taken)][: needs.num_nodes]


def _numbered(gang: Sequence[PlanNode], job: QueuedJob) -> list[tuple[int, PlanNode]]:
    """Give each node of a gang its index, ascending: the one that it had, else by the order of the job's own list, else by name."""
    places = job.needs.places
    placed = {job.before[node.id]: node for node in gang if node.id in job.before}
    new = (node for node in gang if node.id not in job.before)
    free = (index for index in range(len(gang)) if index not in placed)
    in_order = sorted(new, key=lambda node: (places.get(node.name, 0), node.name))
    return sorted([*placed.items(), *zip(free, in_order, strict=True)], key=lambda pair: pair[0])


def why_waiting(job: QueuedJob, nodes: Sequence[PlanNode]) -> tuple[str, str]:
    """Return why `job` has not started, and what makes it start: two sentences for a person."""
    needs = job.needs
    suitable = [node for node in nodes if node.suits(needs)]
    online = [node for node in suitable if node.online]
    room = [node for node in online if node.free_slots >= needs.slots]
    wanted = f"It needs {_wish(needs)}"
    if len(suitable) < needs.num_nodes:
        return (
            f"{wanted}, and {_few(suitable, 'is enrolled', 'are enrolled')}.{_unsuitable(needs, nodes)}",
            "It starts by itself when enough such nodes have joined.",
        )
    if len(online) < needs.num_nodes:
        missing = [node for node in suitable if not node.online]
        return (
            f"{wanted}; {_few(online, 'is online', 'are online')}. Offline: {_names(missing)}.",
            "It starts by itself when enough of them are back.",
        )
    if len(room) < needs.num_nodes:
        busy = [node for node in online if node.free_slots < needs.slots]
        return (
            f"{wanted}; {_few(room, 'has room', 'have room')}. Busy: {_names(busy)}.",
            "It starts by itself when enough slots are free.",
        )
    for label, share in needs.shares:
        carriers = [node for node in room if node.share_label(needs) == label]
        if len(carriers) < share:
            return (
                f"{wanted}, {share} of them with '{label}'; of these {_few(carriers, 'has room', 'have room')}.",
                "It starts by itself when enough of them have.",
            )
    return (
        f"{wanted}. They are free, and kept for an earlier job that has waited longer.",
        "It starts by itself after that job.",
    )


def _wish(needs: Needs) -> str:
    """Such as: 2 nodes with the data source 'scans', the label 'a100' and 2 free slots each."""
    traits = []
    if needs.source is not None:
        traits.append(f"the data source '{needs.source}'")
    if needs.labels:
        labels = " and ".join(f"'{label}'" for label in sorted(needs.labels))
        traits.append(f"the label {labels}" if len(needs.labels) == 1 else f"the labels {labels}")
    if needs.shares:
        traits.append(f"one of the labels {listed([repr(label) for label, _ in needs.shares])}")
    if needs.gpus:
        traits.append("a GPU" if needs.gpus == 1 else f"{needs.gpus} GPUs")
    traits.append("a free slot" if needs.slots == 1 else f"{needs.slots} free slots")
    with_traits = " and ".join([", ".join(traits[:-1]), traits[-1]] if len(traits) > 1 else traits)
    of = f" of {listed(sorted(needs.names))}" if needs.names else ""
    return (
        f"1 node{of} with {with_traits}"
        if needs.num_nodes == 1
        else f"{needs.num_nodes} nodes{of} with {with_traits} each"
    )


def _unsuitable(needs: Needs, nodes: Sequence[PlanNode]) -> str:
    """Which nodes cannot serve the job, of those that it names, or for their privacy budgets; empty where there are none."""
    known = {node.name: node for node in nodes if node.admits(needs)}
    wary = [
        name for name in sorted(needs.names or known) if name in known and needs.unbounded_on in known[name].budgets
    ]
    absent = [name for name in sorted(needs.names) if name not in known]
    unfit = [
        name for name in sorted(needs.names) if name in known and not known[name].suits(needs) and name not in wary
    ]
    budgets = (
        f" With a privacy budget for '{needs.unbounded_on}', which takes only jobs with local differential privacy: "
    )
    return (
        (f" Not enrolled: {listed(absent)}." if absent else "")
        + (f" Enrolled without what it needs: {listed(unfit)}." if unfit else "")
        + (f"{budgets}{listed(wary)}." if wary else "")
    )


def _few(nodes: Sequence[PlanNode], verb_one: str, verb_many: str) -> str:
    if not nodes:
        return f"none {verb_one}"
    return f"only {len(nodes)} {verb_one if len(nodes) == 1 else verb_many} ({_names(nodes)})"


def _names(nodes: Sequence[PlanNode]) -> str:
    return listed(sorted(node.name for node in nodes))


def listed(names: Sequence[str]) -> str:
    """Return the names in one line, the first 8 of many."""
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])} and {len(names) - 8} more"

"""The planner: properties that hold for any queue and fleet, and the sentences for who waits."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from webapp.jobs.planner import PATIENCE, Needs, Placement, PlanNode, QueuedJob, plan, why_waiting

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def job(id: int, num_nodes: int = 1, slots: int = 1, *, waited: timedelta = timedelta(0), **needs) -> QueuedJob:
    return QueuedJob(id, Needs(num_nodes=num_nodes, slots=slots, team_id=1, **needs), NOW - waited)


def node(name: str, slots: int = 2, free: int | None = None, **traits) -> PlanNode:
    return PlanNode(id=name, name=name, slots=slots, free_slots=slots if free is None else free, **traits)


labels = st.frozensets(st.sampled_from(["a100", "eu"]))
queues = st.lists(
    st.builds(
        QueuedJob,
        id=st.integers(1, 1000),
        needs=st.builds(
            Needs,
            num_nodes=st.integers(1, 4),
            slots=st.integers(1, 3),
            team_id=st.integers(1, 2),
            source=st.sampled_from([None, "scans"]),
            gpus=st.integers(0, 1),
            labels=labels,
            names=st.sampled_from([(), ("node-3", "node", "node-1", "node-2")]),
        ),
        queued_at=st.sampled_from([NOW, NOW - PATIENCE]),
        before=st.sampled_from([{}, {"node-1": 0}]),
    ),
    max_size=12,
    unique_by=lambda job: job.id,
)
fleets = st.lists(
    st.builds(
        PlanNode,
        id=st.integers(0, 99).map(lambda n: f"node-{n}"),
        name=st.just("node"),
        slots=st.just(4),
        free_slots=st.integers(0, 4),
        online=st.booleans(),
        num_gpus=st.integers(0, 1),
        labels=labels,
        team_ids=st.frozensets(st.integers(1, 2)),
        sources=st.frozensets(st.just("scans")),
    ),
    max_size=8,
    unique_by=lambda node: node.id,
)


@given(queues, fleets)
def test_no_slot_is_given_twice_and_every_gang_is_whole(queue, nodes):
    placements = plan(queue, nodes, now=NOW)
    by_id = {node.id: node for node in nodes}
    taken = Counter()
    for placement in placements:
        taken[placement.node_id] += placement.slots
    assert all(slots <= by_id[id].free_slots for id, slots in taken.items())
    for queued in queue:
        gang = [p for p in placements if p.job_id == queued.id]
        assert len(gang) in (0, queued.needs.num_nodes)
        assert [p.index for p in gang] == list(range(len(gang)))
        assert len({p.node_id for p in gang}) == len(gang)
        assert all(by_id[p.node_id].online and by_id[p.node_id].suits(queued.needs) for p in gang)


@given(queues, fleets, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(queue, nodes, random):
    nodes = [PlanNode(**{**vars(n), "name": n.id}) for n in nodes]
    expected = plan(queue, nodes, now=NOW)
    random.shuffle(queue)
    random.shuffle(nodes)
    assert plan(queue, nodes, now=NOW) == expected


@given(queues, fleets)
def test_a_second_plan_on_what_is_left_starts_nobody(queue, nodes):
    """What could start did: nobody waits beside free slots that nobody else keeps."""
    placements = plan(queue, nodes, now=NOW)
    taken = Counter()
    for p in placements:
        taken[p.node_id] += p.slots
    left = [PlanNode(**{**vars(n), "free_slots": n.free_slots - taken[n.id]}) for n in nodes]
    started = {p.job_id for p in placements}
    assert plan([job for job in queue if job.id not in started], left, now=NOW) == []


@given(queues, fleets)
def test_gangs_cannot_deadlock(queue, nodes):
    """Run everything that starts to its end, again and again: who could run on the empty fleet does in the end."""
    empty = [PlanNode(**{**vars(n), "free_slots": n.slots}) for n in nodes]
    waiting = list(queue)
    while started := {p.job_id for p in plan(waiting, empty, now=NOW)}:
        waiting = [job for job in waiting if job.id not in started]
    assert all(plan([job], empty, now=NOW) == [] for job in waiting)


def test_the_first_in_the_queue_comes_first():
    assert plan([job(2), job(1)], [node("n", 1)], now=NOW) == [Placement(1, "n", 0, 1)]


def test_emptier_nodes_are_taken_first():
    assert plan([job(1)], [node("a", 4, 1), node("b", 4, 3)], now=NOW)[0].node_id == "b"


def test_a_small_job_passes_a_gang_that_does_not_fit_until_patience_ends():
    nodes = [node("a", 1, 0), node("b", 1, 1)]
    gang, small = job(1, num_nodes=2), job(2)
    assert [p.job_id for p in plan([gang, small], nodes, now=NOW)] == [2]
    impatient = job(1, num_nodes=2, waited=PATIENCE)
    assert plan([impatient, small], nodes, now=NOW) == []
    assert "kept for an earlier job" in why_waiting(small, nodes)[0]


def test_a_gang_that_can_never_fit_keeps_nothing():
    assert [p.job_id for p in plan([job(1, num_nodes=9, waited=PATIENCE), job(2)], [node("a")], now=NOW)] == [2]


def test_2000_nodes_and_10000_like_jobs_take_a_moment():
    nodes = [node(f"n{i:04}", 1) for i in range(2000)]
    queue = [job(i, num_nodes=2) for i in range(10_000)]
    assert len(plan(queue, nodes, now=NOW)) == 2000


def test_why_it_waits():
    fleet = [node("a", 2, 0), node("b", 2, 2), node("c", 2, 2, online=False)]
    cases = [
        (job(1, 4), "It needs 4 nodes with a free slot each, and only 3 are enrolled (a, b, c)."),
        (job(1, 3), "It needs 3 nodes with a free slot each; only 2 are online (a, b). Offline: c."),
        (job(1, 2), "It needs 2 nodes with a free slot each; only 1 has room (b). Busy: a."),
        (
            job(1, 1, 2, source="scans", labels=frozenset({"eu", "a100"}), gpus=2),
            "It needs 1 node with the data source 'scans', the labels 'a100' and 'eu', 2 GPUs and 2 free slots, "
            "and none is enrolled.",
        ),
    ]
    for queued, sentence in cases:
        assert why_waiting(queued, fleet)[0] == sentence


def test_a_job_that_names_its_nodes_takes_no_others_and_numbers_them_as_it_does():
    nodes = [node(name) for name in "abcd"]
    placements = plan([job(1, 2, names=("d", "b"))], nodes, now=NOW)
    assert [(p.node_id, p.index) for p in placements] == [("d", 0), ("b", 1)]
    # Of more names than it needs, the emptier ones.
    nodes[1] = node("b", 2, 1)
    placements = plan([job(1, 2, names=("d", "b", "a"))], nodes, now=NOW)
    assert [(p.node_id, p.index) for p in placements] == [("d", 0), ("a", 1)]


def test_why_a_job_waits_for_the_nodes_that_it_names():
    fleet = [node("a"), node("b", online=False), node("c", team_ids=frozenset({2})), node("d", 2, 0), node("e")]
    cases = [
        (("a", "x"), {}, "only 1 is enrolled (a). Not enrolled: x."),
        # Of another team's node it says no more than of one that does not exist.
        (("a", "c"), {}, "only 1 is enrolled (a). Not enrolled: c."),
        (("a", "e"), {"gpus": 1}, "none is enrolled. Enrolled without what it needs: a, e."),
        (("a", "b"), {}, "only 1 is online (a). Offline: b."),
        (("a", "d"), {}, "only 1 has room (a). Busy: d."),
    ]
    for names, needs, sentence in cases:
        what, _ = why_waiting(job(1, 2, names=names, **needs), fleet)
        assert what.startswith(f"It needs 2 nodes of {names[0]}, {names[1]} with ")
        assert what.endswith(sentence)


def test_a_job_that_goes_on_keeps_its_nodes_and_their_indices():
    fleet = [node("a", 4, 4), node("b", 4, 1), node("c", 4, 2), node("d", 4, 4)]
    before = QueuedJob(1, Needs(num_nodes=2, slots=1, team_id=1), NOW, before={"c": 0, "b": 1})
    assert [(p.node_id, p.index) for p in plan([before], fleet, now=NOW)] == [("c", 0), ("b", 1)]
    # Where one is gone, another takes its place and the others stay.
    without = [n for n in fleet if n.id != "c"]
    assert [(p.node_id, p.index) for p in plan([before], without, now=NOW)] == [("a", 0), ("b", 1)]

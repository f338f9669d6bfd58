"""FedBuff on the server: the buffer closes rounds, whoever is slow goes on, and every update is counted once or named late."""

from datetime import timedelta

import numpy as np
import pytest
from django.db.models import F

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from tests.web.jobs.test_lost_races import at_once
from trainer.protocol import StopAttempt, TrainRound, UpdateOffer
from trainer.weights import map_weights
from webapp.blobs import services as blobs
from webapp.fleet import services as fleet
from webapp.jobs import closing, services
from webapp.jobs.models import Attempt, Job, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def nodes(make_node) -> list[FarNode]:
    return [make_node(f"node-{number}") for number in (1, 2, 3)]


@pytest.fixture
def start(team, owner, nodes, conductor):
    """Submit a FedBuff job of three clients and take the first messages."""

    def submit(strategy: dict[str, object] | None = None, **federated: object) -> list[TrainRound]:
        strategy = {"name": "fedbuff", "buffer": 2, **(strategy or {})}
        spec = spec_with(FEDERATED, federated={"clients": {"num": 3}, "strategy": strategy, **federated})
        services.submit_job(team=team, owner=owner, spec=spec)
        conductor.work()
        return [node.asked() for node in nodes]

    return submit


def ledger() -> list[tuple[int, int, str, int | None]]:
    """(round, client, state, round that counted the update) of each participation."""
    rows = Participation.objects.order_by("round__number", "assignment__index")
    return list(rows.values_list("round__number", "assignment__index", "state", "counted_in__number"))


def age(model: type, field: str, seconds: float, **which: object) -> None:
    assert model.objects.filter(**which).update(**{field: F(field) - timedelta(seconds=seconds)})


def weights() -> np.ndarray:
    (_, value), *_ = sorted(map_weights(blobs.path_of(Attempt.objects.last().weights_digest)).items())
    return value


def test_a_full_buffer_closes_the_round_and_who_is_slow_goes_on(start, nodes, conductor):
    asked = start()
    before = weights()
    nodes[0].deliver(asked[0], value=1)
    conductor.work()
    assert Round.objects.get().state == "open"
    nodes[1].deliver(asked[1], value=3)
    conductor.work()
    assert [r.state for r in Round.objects.all()] == ["closed", "open"]
    # The plain mean of two fresh updates, whatever their examples.
    np.testing.assert_array_equal(weights(), before + np.float32(2))
    # The third was not asked: it is at work.
    assert [len(node.messages()) for node in nodes] == [1, 1, 0]
    assert ledger() == [(1, 0, "returned", 1), (1, 1, "returned", 1), (1, 2, "asked", None), *OPEN_2]


OPEN_2 = [(2, 0, "asked", None), (2, 1, "asked", None)]


def test_an_old_update_counts_less_in_the_round_that_is_open(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    second = nodes[0].asked()
    before = weights()
    assert nodes[2].deliver(asked[2], value=1).accepted
    conductor.work()
    # It is idle now, and asked at once for the open round.
    assert nodes[2].asked().round == 2
    nodes[0].deliver(second, value=1)
    conductor.work()
    assert Job.objects.get().progress_done == 2
    # (1 + 1 / sqrt(1 + 1)) / 2: algorithm 1 of Nguyen et al. with the weight of section 5.
    np.testing.assert_allclose(weights() - before, (1 + 2**-0.5) / 2, rtol=1e-5)
    assert (1, 2, "returned", 2) in ledger()
    facts = Round.objects.get(number=2).facts
    assert facts["weights"] == pytest.approx([1 / (1 + 2**-0.5), 2**-0.5 / (1 + 2**-0.5)])


def test_one_client_may_be_counted_twice_in_a_buffer_by_two_versions(start, nodes, conductor):
    asked = start({"buffer": 3})
    age(Round, "opened_at", 700)  # past the deadline with a quorum of 2 of 3: round 1 closes without node-3
    Round.objects.update(deadline_at=F("opened_at") + timedelta(seconds=600))
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    assert Job.objects.get().progress_done == 1
    nodes[2].deliver(asked[2], value=1)
    conductor.work()
    nodes[2].deliver(nodes[2].asked(), value=1)
    conductor.work()
    nodes[0].deliver(nodes[0].asked(), value=1)
    conductor.work()
    second = Round.objects.get(number=2)
    assert second.state == "closed"
    counted = [(p.assignment.index, p.round.number) for p in second.counted.select_related("assignment", "round")]
    assert sorted(counted) == [(0, 2), (2, 1), (2, 2)]


def test_of_old_weights_the_means_tell_nothing(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    nodes[2].deliver(asked[2], metrics={"global/loss": 9.0, "train/loss": 1.0})
    nodes[1].deliver(nodes[1].asked(), metrics={"global/loss": 4.0, "train/loss": 3.0})
    conductor.work()
    assert Round.objects.get(number=2).metrics == {"global/loss": 4.0, "train/loss": 2.0}


def test_a_node_five_times_slower_holds_up_nobody(start, nodes, conductor):
    asked = start(rounds=5)
    for number in range(1, 6):
        if number == 5:
            assert nodes[2].deliver(asked[2]).accepted
        for node in nodes[:2]:
            (message,) = node.messages() if number > 1 else (asked[nodes.index(node)],)
            assert isinstance(message, TrainRound)
            assert message.round == number
            node.deliver(message)
            if number == 5:
                break  # with the slow one's, the buffer is full
        conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == ("finished", "All 5 rounds closed.")
    assert (1, 2, "returned", 5) in ledger()
    # Who was still at work is let off, with a word.
    late = Participation.objects.get(state="late")
    assert (late.round.number, late.state_reason) == (5, "The attempt ended first: All 5 rounds closed.")
    assert all(any(isinstance(message, StopAttempt) for message in node.messages()) for node in nodes)


def test_what_is_too_old_is_late_and_its_client_starts_from_the_new_weights(start, nodes, conductor):
    asked = start({"max_staleness": 0})
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    services.sweep_jobs()
    late = Participation.objects.get(state="late")
    sentence = "It was trained from round 1, 1 round behind round 2, and strategy.max_staleness is 0."
    assert (late.assignment.index, late.state_reason) == (2, sentence)
    assert nodes[2].asked().round == 2
    verdict = nodes[2].deliver(asked[2])
    assert (verdict.accepted, verdict.reason) == (False, sentence)


def test_an_update_that_comes_while_a_round_is_aggregated_waits_for_the_next(start, nodes, conductor, monkeypatch):
    asked = start()
    inner = closing._compute

    def compute(round_, spec, returned):
        assert nodes[2].deliver(asked[2], value=7).accepted
        assert Participation.objects.get(assignment__index=2).counted_in is None
        return inner(round_, spec, returned)

    with monkeypatch.context() as patch:
        patch.setattr(closing, "_compute", compute)
        nodes[0].deliver(asked[0])
        nodes[1].deliver(asked[1])
        conductor.work()
    conductor.work()
    assert (1, 2, "returned", 2) in ledger()
    assert nodes[2].asked().round == 2
    assert blobs.exists(Participation.objects.get(counted_in__number=2).update_digest)


def test_weights_stay_as_long_as_a_client_may_fetch_them(start, nodes, conductor):
    asked = start(rounds=4)
    for index in (0, 1):
        nodes[index].deliver(asked[index], value=1)
    conductor.work()
    first = asked[0].weights.digest
    assert blobs.exists(first)
    nodes[2].deliver(asked[2], value=1)
    assert not blobs.exists(first)


def test_updates_are_deleted_once_they_are_counted(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index], value=index + 1)
    conductor.work()
    digests = set(Participation.objects.exclude(update_digest="").values_list("update_digest", flat=True))
    assert len(digests) == 2
    assert not any(blobs.exists(digest) for digest in digests)


def test_a_client_past_its_own_deadline_is_late_and_asked_anew(start, nodes, conductor):
    asked = start(round_deadline_seconds=60)
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    age(Participation, "state_changed_at", 61, state="asked", assignment__index=2)
    services.sweep_jobs()
    late = Participation.objects.get(state="late")
    assert late.state_reason == "It was not in 60 s after it was asked, and showed no progress."
    assert nodes[2].asked().round == 2


def test_one_that_shows_progress_has_twice_the_time(start, nodes, conductor):
    asked = start(round_deadline_seconds=60)
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    age(Participation, "state_changed_at", 61, state="asked", assignment__index=2)
    nodes[2].report(asked[2].attempt_id, "progress", round_number=1)
    services.sweep_jobs()
    assert not Participation.objects.filter(state="late").exists()
    age(Participation, "state_changed_at", 60, state="asked", assignment__index=2)
    services.sweep_jobs()
    assert Participation.objects.get(state="late").state_reason == (
        "It still made progress, and 120 s after it was asked are twice the round's deadline."
    )


def test_a_failed_client_of_an_old_round_is_asked_for_the_open_one(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    nodes[2].report(asked[2].attempt_id, "failed", "The runner was killed by signal 9.", 1)
    conductor.work()
    assert (1, 2, "failed", None) in ledger()
    assert nodes[2].asked().round == 2


def test_at_the_deadline_a_round_closes_with_the_quorum_of_its_buffer(start, nodes, conductor):
    asked = start({"buffer": 3})
    nodes[0].deliver(asked[0])
    age(Round, "opened_at", 601)
    age(Round, "deadline_at", 601)
    services.sweep_jobs()
    assert Round.objects.get().state == "open"  # 1 of 3, and half are needed
    nodes[1].deliver(asked[1])
    conductor.work()
    assert [r.state for r in Round.objects.all()] == ["closed", "open"]


def test_without_a_quorum_the_job_fails_at_twice_the_deadline_and_says_who_is_missing(start, nodes, conductor):
    asked = start({"buffer": 3})
    nodes[0].deliver(asked[0])
    age(Round, "opened_at", 1201)
    age(Round, "deadline_at", 1201)
    services.sweep_jobs()
    job = Job.objects.get()
    assert job.state == "failed"
    assert job.state_reason == (
        "Round 1 needed 2 updates of 3 and got 1. Missing: node-2 (no update came), node-3 (no update came)."
    )


def test_with_nobody_left_it_fails_at_once(start, nodes, conductor):
    asked = start()
    for index, node in enumerate(nodes):
        node.report(asked[index].attempt_id, "failed", "No.", 1)
    conductor.work()
    assert Job.objects.get().state == "failed"


def test_a_node_that_is_gone_for_good_makes_a_round_without_it(start, nodes, conductor, admin):
    asked = start()
    fleet.revoke_node(node=nodes[2].node, actor=admin)
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    services.sweep_jobs()
    for _ in range(2):
        for node in nodes[:2]:
            node.deliver(node.asked())
        conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason) == ("finished", "All 3 rounds closed, with 1 update missing.")


def test_when_all_are_gone_the_job_goes_on_elsewhere_from_the_last_closed_round(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    for node in nodes:
        node.vanish()
    services.sweep_jobs()
    assert Job.objects.get().state == "running"
    age(Participation, "state_changed_at", 31, state="lost")
    services.sweep_jobs()
    assert Job.objects.get().state == "queued"
    for node in nodes:
        node.boot_id = "boot-2"
        node.beat()
    conductor.work()
    again = [next(m for m in node.messages() if isinstance(m, TrainRound) and m.attempt_id != 1) for node in nodes]
    assert [message.round for message in again] == [2, 2, 2]


@pytest.mark.parametrize(
    ("boot", "attempts", "kept"), [("boot-1", True, True), ("boot-1", False, False), ("boot-2", True, False)]
)
def test_a_node_that_comes_back_goes_on_with_its_work_or_starts_anew(start, nodes, conductor, boot, attempts, kept):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    nodes[2].vanish()
    services.sweep_jobs()
    assert (1, 2, "lost", None) in ledger()
    assert blobs.exists(asked[2].weights.digest)
    nodes[2].boot_id, nodes[2].attempts = boot, [asked[2].attempt_id] if attempts else []
    nodes[2].beat()
    services.sweep_jobs()
    assert ((1, 2, "asked", None) in ledger()) is kept
    if kept:
        assert nodes[2].messages() == []
        assert nodes[2].deliver(asked[2]).accepted
        assert (1, 2, "returned", 2) in ledger()
    else:
        assert Participation.objects.get(state="late").state_reason == (
            "node-3 is back without its work, and is asked anew for round 2."
        )
        assert nodes[2].asked().round == 2


def test_a_cancel_lets_off_who_is_at_work_on_older_rounds(start, nodes, conductor, owner):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index], value=1)
    conductor.work()
    services.cancel_job(job=Job.objects.get(), actor=owner)
    assert [row[2] for row in ledger()] == ["returned", "returned", "late", "late", "late"]
    assert not blobs.exists(asked[2].weights.digest)
    verdict = nodes[2].offer(asked[2], UpdateOffer(digest="0" * 64, num_examples=100))
    assert not verdict.accepted
    assert verdict.reason.startswith("Attempt 1 of job")


def test_an_older_update_in_the_open_buffer_is_deleted_with_it(start, nodes, conductor, owner):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    nodes[2].deliver(asked[2], value=5)
    kept = Participation.objects.get(counted_in__number=2).update_digest
    assert blobs.exists(kept)
    services.cancel_job(job=Job.objects.get(), actor=owner)
    assert not blobs.exists(kept)


def test_more_rounds_go_on_from_the_last_one(start, nodes, conductor, owner):
    asked = start(rounds=1)
    for index in (0, 1):
        nodes[index].deliver(asked[index], value=1)
    conductor.work()
    job = Job.objects.get()
    assert job.state == "finished"
    for node in nodes:
        node.messages()
        node.report(asked[0].attempt_id, "released")
    services.resume_job(job=job, actor=owner, rounds=1)
    conductor.work()
    for node in nodes[:2]:
        node.deliver(node.asked())
    conductor.work()
    job.refresh_from_db()
    assert (job.state, job.progress_done) == ("finished", 2)


def test_an_early_stop_and_a_server_optimizer_work_as_ever(start, nodes, conductor):
    asked = start(rounds=9, server_optimizer={"name": "adam"}, stop={"metric": "train/loss", "target": 0.5})
    for number in (1, 2):
        for index in (0, 1):
            message = asked[index] if number == 1 else nodes[index].asked()
            nodes[index].deliver(message, value=1, metrics={"train/loss": 1.0 / number})
        conductor.work()
    job = Job.objects.get()
    assert (job.state, job.progress_done) == ("finished", 2)
    assert job.state_reason == "Stopped after round 2 of 9: train/loss is 0.5, and the target was 0.5."
    assert Attempt.objects.get().memory_digest


def test_a_slow_round_says_how_full_its_buffer_is(start, nodes, conductor):
    asked = start()
    for index in (0, 1):
        nodes[index].deliver(asked[index])
    conductor.work()
    nodes[0].deliver(nodes[0].asked())
    conductor.work()
    age(Round, "opened_at", 6, number=2)
    services.sweep_jobs()
    waiting = Job.objects.get().waiting_for
    assert waiting["what"] == (
        "Round 2 has 1 of the 2 updates of its buffer, and waits for node-2, node-3 (training from round 1)."
    )
    assert waiting["then"] == "The round closes with the 1 update that is in."


def test_everything_twice_changes_nothing(start, nodes, conductor):
    asked = start()
    for _ in range(2):
        assert nodes[0].deliver(asked[0]).accepted
        services.advance_attempt(attempt_id=asked[0].attempt_id)
    conductor.work()
    assert ledger() == [(1, 0, "returned", 1), (1, 1, "asked", None), (1, 2, "asked", None)]
    assert [len(node.messages()) for node in nodes] == [0, 0, 0]


def test_updates_and_advances_at_once_count_each_update_once(start, nodes, conductor):
    asked = start(rounds=2)
    advance = [lambda: services.advance_attempt(attempt_id=asked[0].attempt_id)] * 2
    at_once(*[lambda i=i: nodes[i].deliver(asked[i], value=1) for i in range(3)], *advance)
    conductor.work()
    services.sweep_jobs()
    first, second = Round.objects.all()
    assert (first.state, second.state) == ("closed", "open")
    # The third came before the round closed, or is in the next buffer. All are asked for that round, once each.
    assert (first.counted.count(), second.counted.count()) in [(3, 0), (2, 1)]
    assert [node.asked().round for node in nodes] == [2, 2, 2]
    assert Participation.objects.filter(state="returned", counted_in=None).count() == 0

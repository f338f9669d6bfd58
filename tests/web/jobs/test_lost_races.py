"""Two workers at once, one killed between two steps, everything delivered twice: one result, and it goes on."""

import threading
from collections.abc import Callable

import pytest
from django.db import connection
from django.utils import timezone

from tests.web.jobs.far_end import FEDERATED
from trainer.protocol import TrainRound, UpdateOffer
from webapp.core.models import Transition
from webapp.jobs import aggregation, closing, door, federated, services
from webapp.jobs.models import Attempt, Job, Participation, Round
from webapp.telemetry.models import Series

pytestmark = pytest.mark.django_db(transaction=True)


class Killed(BaseException):
    """The worker is gone; nothing catches it."""


@pytest.fixture
def attempt(team, owner, nodes) -> Attempt:
    """Scheduled, and not yet advanced."""
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    services.schedule_jobs()
    return Attempt.objects.get()


@pytest.fixture
def returned(attempt, nodes) -> list[TrainRound]:
    """Round 1 with both updates in, and nobody has closed it."""
    services.advance_attempt(attempt_id=attempt.pk)
    asked = [node.asked() for node in nodes]
    for index, node in enumerate(nodes):
        node.deliver(asked[index], value=index + 1, metrics={"train/loss": 1.0})
    return asked


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Run all calls in threads that start together. Returns their results; raises what one raised."""
    barrier, results, errors = threading.Barrier(len(calls)), [], []

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait(10)
            results.append(call())
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def test_two_that_begin_open_one_round(attempt, nodes):
    at_once(*[lambda: services.advance_attempt(attempt_id=attempt.pk)] * 4)
    assert Round.objects.count() == 1
    assert [len(node.messages()) for node in nodes] == [1, 1]


def test_two_that_close_record_one_result(returned, attempt, nodes):
    at_once(*[lambda: services.advance_attempt(attempt_id=attempt.pk)] * 4)
    assert list(Round.objects.values_list("number", "state")) == [(1, "closed"), (2, "open")]
    assert Series.objects.get(name="train/loss").count == 1
    assert [len(node.messages()) for node in nodes] == [1, 1]
    closed = Transition.objects.filter(subject=f"round:{Round.objects.first().pk}")
    assert list(closed.values_list("new", flat=True)) == ["open", "closing", "closed"]


def test_two_that_compute_the_same_round_record_it_once(returned, attempt, monkeypatch):
    """A slow worker and the one that took its place after 10 s both come to the end; both results are the same bytes."""
    inner = aggregation.aggregate
    digests = []

    def slow(*args, **kwargs):
        result = inner(*args, **kwargs)
        digests.append(result.weights.digest)
        if len(digests) == 1:  # while the first computes, the second, of another process, does all of it
            monkeypatch.setattr(closing, "_computed_here", set())
            round_ = Round.objects.get(number=1)
            Round.objects.filter(pk=round_.pk).update(state_changed_at=timezone.now() - 2 * closing.CLOSE_AGAIN_AFTER)
            services.advance_attempt(attempt_id=attempt.pk)
        return result

    monkeypatch.setattr(aggregation, "aggregate", slow)
    services.advance_attempt(attempt_id=attempt.pk)
    assert digests[0] == digests[1]
    assert list(Round.objects.values_list("number", "state")) == [(1, "closed"), (2, "open")]
    assert Series.objects.get(name="train/loss").count == 1


def test_a_long_sum_is_not_begun_again_by_the_process_that_computes_it(returned, attempt, monkeypatch):
    inner = aggregation.aggregate
    calls = []

    def slow(*args, **kwargs):
        calls.append(1)
        past = timezone.now() - 2 * closing.CLOSE_AGAIN_AFTER
        Round.objects.filter(number=1).update(state_changed_at=past)
        services.sweep_jobs()
        return inner(*args, **kwargs)

    monkeypatch.setattr(aggregation, "aggregate", slow)
    services.advance_attempt(attempt_id=attempt.pk)
    assert calls == [1]
    assert list(Round.objects.values_list("number", "state")) == [(1, "closed"), (2, "open")]


def test_a_second_worker_whose_updates_were_deleted_harms_nothing(returned, attempt, monkeypatch):
    inner = aggregation.aggregate
    calls = []

    def late(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            monkeypatch.setattr(closing, "_computed_here", set())  # the sweep of another process
            past = timezone.now() - 2 * closing.CLOSE_AGAIN_AFTER
            Round.objects.filter(number=1).update(state_changed_at=past)
            services.advance_attempt(attempt_id=attempt.pk)
        return inner(*args, **kwargs)

    monkeypatch.setattr(aggregation, "aggregate", late)
    services.advance_attempt(attempt_id=attempt.pk)
    assert Job.objects.get().state == "running"
    assert list(Round.objects.values_list("number", "state")) == [(1, "closed"), (2, "open")]


def test_an_update_that_arrives_while_the_round_closes_is_in_or_late(attempt, nodes):
    """Whichever comes first: what the door accepted is in the sum, and what it refused is not."""
    services.advance_attempt(attempt_id=attempt.pk)
    asked = [node.asked() for node in nodes]
    nodes[0].deliver(asked[0], value=1)
    digest = nodes[1].update_for(asked[1].weights, 5).digest
    Round.objects.update(deadline_at=timezone.now())
    offer = UpdateOffer(digest=digest, num_examples=100)
    results = at_once(lambda: nodes[1].offer(asked[1], offer), lambda: services.advance_attempt(attempt_id=attempt.pk))
    (verdict,) = [result for result in results if result is not None]
    second = Participation.objects.get(round__number=1, assignment__index=1)
    services.sweep_jobs()
    assert Round.objects.get(number=1).state == "closed"
    assert (verdict.accepted, second.state) in [(True, "returned"), (False, "late")]


def test_an_update_of_a_lost_client_is_too_late_where_the_round_closes_under_it(attempt, nodes, monkeypatch):
    """Lost stays lost at the closing: that the round takes no more is what must keep the update out."""
    services.advance_attempt(attempt_id=attempt.pk)
    asked = [node.asked() for node in nodes]
    nodes[0].deliver(asked[0], value=1, metrics={"train/loss": 1.0})
    nodes[1].vanish()
    services.sweep_jobs()
    Round.objects.update(deadline_at=timezone.now())
    real = door._why_bad

    def and_meanwhile(*args):
        why = real(*args)
        monkeypatch.setattr(door, "_why_bad", real)
        services.advance_attempt(attempt_id=attempt.pk)
        return why

    monkeypatch.setattr(door, "_why_bad", and_meanwhile)
    verdict = nodes[1].deliver(asked[1], value=3, metrics={"train/loss": 3.0})
    assert (verdict.accepted, verdict.reason) == (False, "Round 1 takes no more updates: it is closed.")
    assert Participation.objects.get(round__number=1, assignment__index=1).state == "lost"
    assert Round.objects.get(number=1).metrics == {"train/loss": 1.0}


def test_an_update_accepted_between_the_look_and_the_close_counts(attempt, nodes, monkeypatch):
    services.advance_attempt(attempt_id=attempt.pk)
    asked = [node.asked() for node in nodes]
    nodes[0].deliver(asked[0], value=1, metrics={"train/loss": 1.0})
    Round.objects.update(deadline_at=timezone.now())
    real = federated.judge

    def and_meanwhile(*args):
        verdict = real(*args)
        nodes[1].deliver(asked[1], value=3, metrics={"train/loss": 3.0})
        return verdict

    monkeypatch.setattr(federated, "judge", and_meanwhile)
    services.advance_attempt(attempt_id=attempt.pk)
    assert Round.objects.get(number=1).metrics == {"train/loss": 2.0}


def test_a_cancel_while_the_round_is_computed_wins(returned, attempt, owner, monkeypatch):
    inner = aggregation.aggregate

    def meanwhile(*args, **kwargs):
        result = inner(*args, **kwargs)
        services.cancel_job(job=Job.objects.get(), actor=owner)
        return result

    monkeypatch.setattr(aggregation, "aggregate", meanwhile)
    services.advance_attempt(attempt_id=attempt.pk)
    job = Job.objects.get()
    assert (job.state, job.progress_done) == ("cancelled", 0)
    assert list(Round.objects.values_list("state", "state_reason")) == [("failed", "Cancelled by owner.")]


STEPS = [
    (federated, "judge"),
    *((closing, step) for step in ("drop_participations", "_update_of", "_record", "_why_stopped", "open_next_round")),
    *((closing, step) for step in ("record_values", "tell_browsers")),
]


@pytest.mark.parametrize(("module", "step"), STEPS)
def test_a_worker_killed_at_any_step_is_taken_over(returned, attempt, nodes, monkeypatch, module, step):
    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, step, die)
        with pytest.raises(Killed):
            services.advance_attempt(attempt_id=attempt.pk)
    services.sweep_jobs()
    Round.objects.filter(state="closing").update(state_changed_at=timezone.now() - 2 * closing.CLOSE_AGAIN_AFTER)
    services.sweep_jobs()
    assert list(Round.objects.values_list("number", "state")) == [(1, "closed"), (2, "open")]
    assert Series.objects.get(name="train/loss").count == 1
    assert [node.asked().round for node in nodes] == [2, 2]


@pytest.mark.parametrize("step", ["export_model"])
def test_a_worker_killed_before_the_end_leaves_the_end_to_the_next(attempt, nodes, monkeypatch, step):
    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(aggregation, step, die)
        for _ in range(3):
            services.sweep_jobs()
            for node in nodes:
                node.deliver(node.asked())
        with pytest.raises(Killed):
            services.sweep_jobs()
    assert Job.objects.get().state == "running"
    services.sweep_jobs()
    assert Job.objects.get().state == "finished"


def test_everything_delivered_twice_changes_nothing(attempt, nodes):
    for number in (1, 2, 3):
        for _ in range(2):
            services.advance_attempt(attempt_id=attempt.pk)
            services.sweep_jobs()
        for node in nodes:
            asked = node.asked()
            assert asked.round == number
            for kind in ("started", "started"):
                node.report(attempt.pk, kind, round_number=number)
            for _ in range(2):
                assert node.deliver(asked, value=number).accepted
    for _ in range(2):
        services.advance_attempt(attempt_id=attempt.pk)
    for node in nodes:
        for kind in ("model_kept", "model_kept", "released", "released"):
            node.report(attempt.pk, kind)
    services.sweep_jobs()
    assert (Job.objects.get().state, Job.objects.get().progress_done) == ("finished", 3)
    assert not any(node.node.strays.exists() for node in nodes)


def test_a_broken_server_disk_fails_the_job_with_a_sentence(returned, attempt, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aggregation, "aggregate", full)
    services.advance_attempt(attempt_id=attempt.pk)
    job = Job.objects.get()
    assert job.state == "failed"
    assert job.state_reason == "The server could not aggregate round 1: [Errno 28] No space left on device"

"""The deadline of a round: who shows progress is waited for, up to twice the time, and the late ones hear why."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.protocol import TrainRound
from webapp.jobs import services
from webapp.jobs.models import Job, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def asked(team, owner, nodes, conductor) -> list[TrainRound]:
    """Round 1 of a job with a deadline of 100 s; the update of node-1 is in, node-2 is at work."""
    spec = spec_with(FEDERATED, federated={"round_deadline_seconds": 100})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    messages = [node.asked() for node in nodes]
    nodes[0].deliver(messages[0])
    return messages


def open_since(seconds: float, progress: float | None = None) -> None:
    """Let the round be open for so long, and the last sign of progress be so old."""
    now = timezone.now()
    opened = now - timedelta(seconds=seconds)
    Round.objects.update(opened_at=opened, deadline_at=opened + timedelta(seconds=100))
    at = None if progress is None else now - timedelta(seconds=progress)
    Participation.objects.filter(state="asked").update(progress_at=at, asked_at=now)


def sweep() -> str:
    """Sweep, and return the state of round 1."""
    services.sweep_jobs()
    return Round.objects.get(number=1).state


def test_progress_is_noted_for_its_own_round(asked, nodes):
    attempt_id = asked[0].attempt_id
    nodes[1].report(attempt_id, "progress", round_number=2)
    assert Participation.objects.get(assignment__index=1).progress_at is None
    nodes[1].report(attempt_id, "progress", round_number=1)
    first = Participation.objects.get(assignment__index=1).progress_at
    nodes[1].report(attempt_id, "progress", round_number=1)
    assert Participation.objects.get(assignment__index=1).progress_at > first
    # One that is in has nothing to say any more.
    nodes[0].report(attempt_id, "progress", round_number=1)
    assert Participation.objects.get(assignment__index=0).progress_at is None


def test_without_progress_it_closes_at_the_deadline(asked):
    open_since(99)
    assert sweep() == "open"
    open_since(101)
    assert sweep() == "closed"
    late = Participation.objects.get(state="late")
    assert late.state_reason == "It was not in when round 1 closed, and had shown no progress."


def test_with_progress_it_goes_on_and_says_until_when(asked):
    open_since(101, progress=14)
    assert sweep() == "open"
    round_, waiting = Round.objects.get(), Job.objects.get().waiting_for
    assert waiting["what"] == "Round 1 waits for node-2. Its deadline has passed; node-2 still makes progress."
    assert waiting["until"] == (round_.opened_at + timedelta(seconds=200)).isoformat()
    assert waiting["then"] == "The round closes with the 1 update that is in."


def test_an_update_after_the_deadline_counts_while_the_round_is_open(asked, nodes, conductor):
    open_since(150, progress=1)
    services.sweep_jobs()
    assert nodes[1].deliver(asked[1]).accepted
    conductor.work()
    assert list(Participation.objects.filter(round__number=1).values_list("state", flat=True)) == ["returned"] * 2
    assert Job.objects.get().waiting_for is None


def test_progress_that_stops_lets_it_close(asked):
    open_since(120, progress=16)
    assert sweep() == "closed"
    late = Participation.objects.get(state="late")
    assert late.state_reason == "It was not in when round 1 closed: it had shown no progress for 16 s."


def test_nobody_is_waited_for_beyond_twice_the_deadline(asked):
    open_since(199, progress=1)
    assert sweep() == "open"
    open_since(201, progress=1)
    assert sweep() == "closed"
    late = Participation.objects.get(state="late")
    assert late.state_reason == (
        "It was not in when round 1 closed: it still made progress, and 200 s are twice the round's deadline."
    )


def test_without_a_quorum_the_job_says_that_it_was_still_at_work(team, owner, nodes, conductor):
    spec = spec_with(FEDERATED, federated={"round_deadline_seconds": 100, "clients": {"quorum": 1.0}})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    nodes[0].deliver(nodes[0].asked())
    open_since(201, progress=1)
    assert sweep() == "failed"
    assert Job.objects.get().state_reason == (
        "Round 1 needed 2 updates of 2 and got 1. Missing: node-2 (it was still making progress)."
    )


def test_a_lost_client_that_showed_progress_lately_is_waited_for(asked, nodes):
    open_since(101, progress=2)
    nodes[1].vanish()
    assert sweep() == "open"
    assert Participation.objects.get(assignment__index=1).state == "lost"

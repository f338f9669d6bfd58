"""Blobs that nobody needs: an upload that was never offered goes after a day, and nothing else does."""

import os
import time

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from webapp.blobs import services as blobs
from webapp.jobs import services
from webapp.jobs.garbage import KEEP_SECONDS
from webapp.jobs.models import Attempt

pytestmark = pytest.mark.django_db(transaction=True)

MOMENTUM = spec_with(FEDERATED, federated={"server_optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5}})


def age(digest: str) -> None:
    long_ago = time.time() - KEEP_SECONDS - 1
    os.utime(blobs.path_of(digest), (long_ago, long_ago))


def test_what_was_never_offered_goes_after_a_day(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    asked = [node.asked() for node in nodes]
    nodes[0].deliver(asked[0])
    returned = nodes[0].update_for(asked[0].weights).digest
    fresh, forgotten = (blobs.save_bytes(text).digest for text in (b"fresh", b"forgotten"))
    for digest in (asked[0].weights.digest, returned, forgotten):
        age(digest)
    assert services.sweep_blobs() == 1
    assert not blobs.exists(forgotten)
    assert all(blobs.exists(digest) for digest in (asked[0].weights.digest, returned, fresh))


def test_an_unfinished_upload_is_no_blob(nodes):
    path = blobs.incoming_dir("some-node") / ("0" * 64)
    path.write_bytes(b"half of it")
    os.utime(path, (1, 1))
    assert services.sweep_blobs() == 0
    assert path.exists()


@pytest.fixture
def again(team, owner, nodes, conductor):
    """A job with momentum whose first attempt closed a round and was cancelled; the second one has asked for round 2."""
    job = services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    for node in nodes:
        node.deliver(node.asked(), value=1)
    conductor.work()
    services.cancel_job(job=job, actor=owner)
    for node in nodes:
        node.messages()
        node.report(Attempt.objects.get().pk, "released")
    services.resume_job(job=job, actor=owner)
    conductor.work()
    return job


def state_of(attempt: Attempt) -> list[str]:
    return [attempt.weights_digest, attempt.memory_digest]


def test_what_an_attempt_began_with_goes_when_it_moves_on(again, nodes, conductor):
    first, second = Attempt.objects.all()
    assert state_of(first) == state_of(second)
    assert all(blobs.exists(digest) for digest in state_of(second)), "the second attempt trains on them"
    for node in nodes:
        node.deliver(node.asked(), value=1)
    conductor.work()
    assert not any(blobs.exists(digest) for digest in state_of(first))
    second.refresh_from_db()
    assert all(blobs.exists(digest) for digest in state_of(second))


def test_what_an_older_attempt_left_is_swept(again):
    """Such as that of a server which kept the weights of every attempt."""
    left, taken = (blobs.save_bytes(text).digest for text in (b"left", b"taken over"))
    Attempt.objects.filter(number=1).update(weights_digest=left, memory_digest=taken)
    Attempt.objects.filter(number=2).update(memory_digest=taken)
    for digest in (left, taken):
        age(digest)
    assert services.sweep_blobs() == 1
    assert [blobs.exists(digest) for digest in (left, taken)] == [False, True]


def test_another_jobs_attempts_do_not_count_as_newer(again, team, owner):
    kept = blobs.save_bytes(b"the last state of another job").digest
    other = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    Attempt.objects.create(job=other, number=1, state="failed", weights_digest=kept)
    age(kept)
    assert services.sweep_blobs() == 0
    assert blobs.exists(kept)

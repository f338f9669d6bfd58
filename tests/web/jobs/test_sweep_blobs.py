"""Blobs that nobody needs: an upload that was never offered goes after a day, and nothing else does."""

import os
import time

import pytest

from tests.web.jobs.far_end import FEDERATED
from webapp.blobs import services as blobs
from webapp.jobs import services
from webapp.jobs.garbage import KEEP_SECONDS

pytestmark = pytest.mark.django_db(transaction=True)


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

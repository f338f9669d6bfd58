"""Under which names a node may report."""

from __future__ import annotations

import pytest

from tests.web.telemetry.conftest import make_attempt, make_node
from tests.web.telemetry.sender import Sender
from webapp.ingest.loop import Ingest
from webapp.ingest.voices import sources_of
from webapp.jobs.models import Assignment, Stray
from webapp.telemetry.models import Series

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_client_is_called_as_its_node():
    assert sources_of("node-1", 0, 1, "federated", None) == {"node-1"}
    assert sources_of("aggregate", 0, 1, "federated", None) == set()
    assert sources_of("server", 0, 1, "federated", None) == set()


def test_ranks_are_called_by_their_numbers():
    assert sources_of("node-2", 1, 2, "distributed", None) == {"rank 2", "rank 3"}


def test_rank_0_of_a_simulation_tells_of_the_mean_and_of_a_few_clients():
    assert sources_of("node-1", 0, 2, "federated", 3) == {
        *("rank 0", "rank 1", "aggregate"),
        *("client 0", "client 1", "client 2"),
    }
    assert sources_of("node-1", 0, 2, "federated", 21) == {"rank 0", "rank 1", "aggregate"}
    assert sources_of("node-2", 1, 2, "federated", 3) == {"rank 2", "rank 3"}


def test_ingest_takes_a_simulations_curves_from_rank_0_alone(broker, node, job):
    job.spec_json = {**job.spec_json, "federated": {"clients": {"simulate": 100, "num": 2}}}
    job.save(update_fields=["spec_json"])
    attempt, other = make_attempt(job, node), make_node("node-2")
    Assignment.objects.create(attempt=attempt, node=other, index=1, slots=1, state="active")
    for far in (node, other):
        Sender(broker, far).points(attempt.pk, {"server/loss": [(1, 0.5)]}, source="aggregate")
    Ingest().tick()
    assert [(s.name, s.source, s.count) for s in Series.objects.all()] == [("server/loss", "aggregate", 1)]
    assert Stray.objects.get().node == other

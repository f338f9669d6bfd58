"""What the API tells about the rounds of a simulation, and to whom."""

from __future__ import annotations

import pytest

from trainer.simulation.messages import SimulatedClient, SimulatedRound
from webapp.jobs.simulated_facts import facts_of


@pytest.fixture
def simulated(parts):
    """The job's one round, as if virtual clients had trained in it."""
    clients = [
        SimulatedClient(client=3, num_examples=7, num_steps=2, seconds_training=0.5, loss=float("nan"), norm=1.5),
        SimulatedClient(client=8, num_examples=5, num_steps=1, seconds_training=0.25, loss=0.5, norm=0.5),
    ]
    said = SimulatedRound.of(clients, {"weights": [0.75, 0.25]}, round=1, opened_ms=0, closed_ms=1, metrics={})
    parts.round.participations.all().delete()
    parts.round.facts = facts_of(said)
    parts.round.save(update_fields=["facts"])
    return parts


def test_virtual_clients_stand_in_their_round(call, owner, simulated):
    (round_,) = call(owner).get(f"/jobs/{simulated.job.pk}/rounds").json()["items"]
    assert round_["participations"] == []
    assert round_["facts"]["weights"] == [0.75, 0.25]
    told = round_["simulation"]
    assert (told["num_clients"], told["num_examples"], told["seconds_training"]) == (2, 12, 0.75)
    assert told["clients"] == [
        {"client": 3, "num_examples": 7, "num_steps": 2, "seconds_training": 0.5, "loss": "NaN", "norm": 1.5},
        {"client": 8, "num_examples": 5, "num_steps": 1, "seconds_training": 0.25, "loss": 0.5, "norm": 0.5},
    ]


def test_a_round_of_real_clients_has_none(call, owner, parts):
    (round_,) = call(owner).get(f"/jobs/{parts.job.pk}/rounds").json()["items"]
    assert round_["simulation"] is None


def test_who_is_not_in_the_team_sees_no_client(call, teammate, stranger, admin, simulated):
    path = f"/jobs/{simulated.job.pk}/rounds"
    assert [call(user).get(path).status_code for user in (teammate, stranger, None, admin)] == [200, 404, 401, 200]

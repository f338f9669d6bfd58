"""Simulations with privacy, with a goal, resumed with more rounds, and on the nodes' own data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from django.test import Client

from tests.web.jobs.far_end import FarNode, spec_with
from tests.web.jobs.simulator import SIMULATED, Simulator, begin
from trainer.federated.privacy import epsilon_after
from trainer.sources import SourceSchema
from trainer.weights import pack_weights
from webapp.blobs import services as blobs
from webapp.fleet.credentials import hash_secret
from webapp.fleet.models import Node
from webapp.jobs import services
from webapp.jobs.blob_access import node_may_read_blob
from webapp.jobs.models import Attempt, Job, Round
from webapp.jobs.privacy import privacy_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(make_node) -> FarNode:
    return make_node("node-1")


@pytest.fixture
def start(team, owner, node, conductor):
    def start(**federated: object) -> Simulator:
        services.submit_job(team=team, owner=owner, spec=spec_with(SIMULATED, federated=federated))
        conductor.work()
        return begin(node)

    return start


def private(rank_0: Simulator, number: int, **facts: float) -> dict[str, object]:
    said = rank_0.round(number)
    federated = rank_0.asked.spec.federated
    epsilon = epsilon_after(federated.privacy, federated.clients, number)
    noisy = {"clip_norm": 1.0, "noise_std": 0.5, "epsilon": epsilon, "num_clipped": 2}
    return said.model_copy(update={"facts": said.facts | noisy | facts})


PRIVACY = {"noise_multiplier": 1.0, "delta": 1e-5, "clip": {"name": "fixed", "norm": 1.0}}


def test_privacy_must_have_taken_effect(start):
    rank_0 = start(privacy=PRIVACY, clients={"simulate": 20, "num": 1, "fraction": 1.0})
    said = rank_0.post(rank_0.pack(1, 1)).reason
    assert said == "Round 1 does not say what its privacy cost, and whether there was noise."
    assert rank_0.post(rank_0.pack(1, 2, rounds=[private(rank_0, 1), private(rank_0, 2)])).accepted
    spent = privacy_of(Job.objects.get()).spent
    federated = rank_0.asked.spec.federated
    assert (spent.round, spent.num_clipped) == (2, 2)
    assert spent.epsilon == epsilon_after(federated.privacy, federated.clients, 2)


def test_a_round_beyond_the_budget_is_refused(start):
    everybody = {"simulate": 20, "num": 1, "fraction": 1.0}
    federated = spec_with(SIMULATED, federated={"privacy": PRIVACY, "clients": everybody}).federated
    limit = epsilon_after(federated.privacy, federated.clients, 2) + 1e-6
    rank_0 = start(privacy={**PRIVACY, "max_epsilon": limit}, clients=everybody)
    one, two, three = (private(rank_0, number) for number in (1, 2, 3))
    assert "would bring epsilon to" in rank_0.post(rank_0.pack(1, 3, rounds=[one, two, three])).reason
    verdict = rank_0.post(rank_0.pack(1, 2, rounds=[one, two]))
    _, _, why = verdict.reason.partition("By what it measured, it ends: ")
    assert "privacy.max_epsilon" in why
    assert rank_0.post(rank_0.pack(1, 2, rounds=[one, two.model_copy(update={"stopped": why})])).accepted


def test_what_privacy_cost_is_computed_again(start):
    rank_0 = start(privacy=PRIVACY, clients={"simulate": 20, "num": 1, "fraction": 1.0})
    verdict = rank_0.post(rank_0.pack(1, 1, rounds=[private(rank_0, 1, epsilon=0.01)]))
    assert verdict.reason.startswith("Round 1 says that epsilon is 0.01, and it is ")


def test_who_goes_on_knows_what_was_measured(start, node, owner, conductor):
    rank_0 = start(stop={"metric": "server/loss", "patience": 1}, evaluate_every=1)
    assert rank_0.post(rank_0.pack(1, 2)).accepted
    sentence = "server/loss has not improved for 1 round."
    worse = rank_0.round(3, stopped=sentence, metrics={"server/loss": 3.0})
    assert rank_0.post(rank_0.pack(3, 3, rounds=[worse])).accepted
    node.report(rank_0.asked.attempt_id, "finished")
    conductor.work()
    node.report(rank_0.asked.attempt_id, "released")
    node.messages()
    job = Job.objects.get()
    assert job.state_reason == f"Stopped after round 3 of 5: {sentence}"
    services.resume_job(job=job, actor=owner, rounds=4)
    conductor.work()
    again = begin(node).asked.start
    assert (again.round, again.last_round, again.resumed_at) == (4, 7, 3)
    assert again.history == [(2, 1.0)]  # the best: all that the next rounds are held to


def test_the_memory_is_for_the_nodes_that_go_on_from_it(start, node, make_node, owner, conductor):
    rank_0 = start(server_optimizer={"name": "sgd", "momentum": 0.9})
    memory = blobs.save_bytes(
        pack_weights({f"momentum/{name}": np.ones_like(array) for name, array in rank_0.base.items()})
    ).digest
    assert rank_0.post(rank_0.pack(1, 1, memory=memory)).accepted
    assert node_may_read_blob(node.node, memory)
    assert not node_may_read_blob(make_node("node-2").node, memory)
    services.cancel_job(job=Job.objects.get(), actor=owner)
    node.report(rank_0.asked.attempt_id, "released")
    assert not node_may_read_blob(node.node, memory)
    services.resume_job(job=Job.objects.get(), actor=owner)
    conductor.work()
    assert Attempt.objects.count() == 2
    again = begin(node).asked.start
    assert (again.round, again.memory.digest) == (2, memory)


def test_nodes_whose_rows_differ_cannot_share_it_out(team, owner, make_node, conductor):
    def scans(num_rows: int) -> tuple[SourceSchema, ...]:
        return (SourceSchema(name="scans", task="classification", shape=(4,), num_rows=num_rows, num_classes=2),)

    make_node("node-1", sources=scans(100))
    make_node("node-2", sources=scans(90))
    spec = spec_with(
        SIMULATED, data={"source": "scans"}, federated={"clients": {"simulate": 20, "per_round": 4, "num": 2}}
    )
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    job = Job.objects.get()
    assert job.state == "failed"
    assert "'scans' has 100 on node-1 and 90 on node-2: simulate on one node, or give both the same file." in (
        job.state_reason
    )


def test_a_pack_comes_by_http(start, node):
    rank_0 = start()
    Node.objects.filter(pk=node.node.pk).update(secret_hash=hash_secret("tms_test"))
    said = rank_0.round(1, metrics={"train/loss": float("nan")})
    body = rank_0.pack(1, 1, rounds=[said]).model_dump_json()

    def post(secret: str, data: str = body):
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        url = f"/node/v1/attempts/{rank_0.asked.attempt_id}/simulated"
        return Client().post(url, data, content_type="application/json", headers=headers)

    assert post("").status_code == 401
    assert post("tms_wrong").status_code == 401
    assert post("tms_test", json.dumps({"rounds": [], "weights": "zz"})).status_code == 422
    answer = post("tms_test")
    assert (answer.status_code, answer.json()) == (200, {"accepted": True, "reason": "", "missing_bytes": False})
    assert Round.objects.get().metrics == {"train/loss": "NaN"}

"""The door knows what a job's updates hold: in each encoding, with SCAFFOLD's variates, and what it records of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from trainer.federated.encoding import encode_update
from trainer.protocol import TrainRound, UpdateOffer, Verdict
from trainer.weights import Weights, map_weights, pack_weights
from webapp.blobs import services as blobs
from webapp.jobs import door, services
from webapp.jobs.local_privacy import local_privacy_of
from webapp.jobs.models import Job, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)

ENCODINGS: list[dict[str, object]] = [
    {"name": "float32"},
    {"name": "bfloat16"},
    {"name": "int8"},
    {"name": "top_k", "fraction": 0.01},
]


@pytest.fixture
def ask(team, owner, nodes, conductor):
    """Open round 1 of a job with these federated options. Returns what node 1 was asked."""

    def ask(data=None, **options):
        spec = spec_with(FEDERATED, data=data or {}, federated=options)
        services.submit_job(team=team, owner=owner, spec=spec)
        conductor.work()
        return nodes[0].asked()

    return ask


def delta_for(asked: TrainRound) -> Weights:
    weights = map_weights(blobs.path_of(asked.weights.digest))
    return {name: np.full(weight.shape, 0.5, np.float32) for name, weight in weights.items()}


def encoded_for(asked: TrainRound) -> Weights:
    assert asked.spec.federated is not None
    tensors, _ = encode_update(delta_for(asked), asked.spec.federated.encoding, rng=np.random.default_rng(0))
    return tensors


def deliver(node: FarNode, asked: TrainRound, tensors: Weights, **claims: object) -> Verdict:
    digest = blobs.save_bytes(pack_weights(tensors)).digest
    return node.offer(asked, UpdateOffer.model_validate({"digest": digest, "num_examples": 100, **claims}))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding["name"])
def test_an_update_in_the_jobs_encoding(ask, nodes, encoding):
    asked = ask(encoding=encoding)
    verdict = deliver(nodes[0], asked, encoded_for(asked))
    assert (verdict.accepted, verdict.reason) == (True, "")
    returned = Participation.objects.get(assignment__index=0)
    assert returned.size_bytes == blobs.path_of(returned.update_digest).stat().st_size


def test_an_update_in_another_encoding_is_refused(ask, nodes):
    asked = ask(encoding={"name": "int8"})
    verdict = deliver(nodes[0], asked, delta_for(asked))
    assert verdict.reason == "The update lacks 2 tensors, such as 'scale.1.bias', 'scale.1.weight'."
    refused = Participation.objects.get(assignment__index=0)
    assert (refused.state, refused.num_steps, refused.label_counts) == ("refused", 0, None)


PRIVATE: dict[str, object] = {"local_privacy": {}, "encoding": {"name": "int8"}}


def test_a_refused_update_has_spent_all_the_same(ask, nodes):
    """Its client has trained: what it says of that counts for the panel."""
    asked = ask(data={"scaling": "none"}, **PRIVATE)
    assert not deliver(nodes[0], asked, delta_for(asked), epsilon=1.5).accepted
    refused = Participation.objects.get(assignment__index=0)
    assert (refused.state, refused.epsilon) == ("refused", 1.5)
    local = local_privacy_of(Job.objects.get())
    assert local is not None
    assert local.worst == refused
    assert local.forecast.most is not None
    assert local.forecast.most.num_rows == 719  # of the rows that it claims, nothing is kept


def test_a_refused_update_with_an_impossible_price_says_none(ask, nodes):
    asked = ask(data={"scaling": "none"}, **PRIVATE)
    assert not deliver(nodes[0], asked, delta_for(asked), epsilon=float("inf")).accepted
    assert Participation.objects.get(assignment__index=0).epsilon is None


def test_scaffold_brings_its_variates(ask, nodes):
    asked = ask(strategy={"name": "scaffold"})
    delta = delta_for(asked)
    assert deliver(nodes[0], asked, delta | {f"variate.{name}": array for name, array in delta.items()}).accepted


def test_scaffold_without_variates_is_refused(ask, nodes):
    asked = ask(strategy={"name": "scaffold"})
    verdict = deliver(nodes[0], asked, delta_for(asked))
    assert verdict.reason == "The update lacks 2 tensors, such as 'variate.1.bias', 'variate.1.weight'."


def test_what_the_client_says_is_recorded(ask, nodes):
    asked = ask(strategy={"name": "qfedavg"})
    claims = {"num_steps": 4, "loss_before": 2.25, "bytes_down": 2600, "label_counts": {"0": 60, "7": 40}}
    assert deliver(nodes[0], asked, delta_for(asked), **claims).accepted
    returned = Participation.objects.get(assignment__index=0)
    assert {name: getattr(returned, name) for name in claims} == claims


def test_a_clients_label_counts_are_recorded_once(ask, nodes, conductor):
    """With 10,000 classes they take 169 kB, and a job may have 100,000 rounds. A client that begins to share is heard."""
    counts = {"0": 60, "7": 40}
    asked = [ask(), nodes[1].asked()]
    for shares in ([True, False], [True, True], [True, True]):
        for node, message, is_shared in zip(nodes, asked, shares, strict=True):
            claims = {"label_counts": counts} if is_shared else {}
            assert deliver(node, message, delta_for(message), **claims).accepted
        conductor.work()
        if Round.objects.filter(state=Round.State.OPEN).exists():
            asked = [node.asked() for node in nodes]
    rows = Participation.objects.order_by("assignment__index", "round__number")
    assert list(rows.values_list("label_counts", flat=True)) == [counts, None, None, None, counts, None]


def test_what_cannot_be_true_is_refused_before_the_file_is_read(ask, nodes, monkeypatch):
    asked = ask()
    monkeypatch.setattr("webapp.jobs.door.check_update", lambda *_: pytest.fail("read"))
    verdict = deliver(nodes[0], asked, delta_for(asked), num_steps=10**6)
    assert verdict.reason == "The update claims 1,000,000 steps: 1 x 100 examples in batches of 32 are 4."
    assert Participation.objects.get(assignment__index=0).state_reason == verdict.reason


@pytest.mark.parametrize("lost", ["update", "weights"])
def test_a_round_that_closes_under_the_door_says_so(ask, nodes, monkeypatch, lost):
    """Its files go with it. Whichever the door looks for next, a missing one is a lost race and no bad update."""
    asked = ask()
    door._header.cache_clear()

    def close_meanwhile(offer: UpdateOffer, *_: object, **__: object) -> str:
        round_ = Round.objects.get()
        round_.move_to(Round.State.CLOSING)
        round_.move_to(Round.State.CLOSED)
        blobs.delete(offer.digest if lost == "update" else asked.weights.digest)
        return ""

    monkeypatch.setattr("webapp.jobs.claims.why_false", close_meanwhile)
    verdict = deliver(nodes[0], asked, delta_for(asked))
    assert (verdict.accepted, verdict.reason) == (False, "Round 1 takes no more updates: it is closed.")

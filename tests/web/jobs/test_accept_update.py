"""The door: one update a client and round, and nothing else."""

import hashlib

import numpy as np
import pytest

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from trainer.protocol import TrainRound, UpdateOffer
from trainer.weights import map_weights, pack_weights
from webapp.blobs import services as blobs
from webapp.jobs import services
from webapp.jobs.models import Job, Participation, Round, Stray

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def asked(team, owner, nodes, conductor) -> list[TrainRound]:
    """Round 1 of a job of two rounds is open."""
    services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"rounds": 2}))
    conductor.work()
    return [node.asked() for node in nodes]


def changed(asked: TrainRound, bias: np.ndarray | None = None, **more: np.ndarray) -> str:
    """An update of zeros with another bias, or with more tensors. Returns its digest."""
    weights = {name: np.zeros_like(w) for name, w in map_weights(blobs.path_of(asked.weights.digest)).items()}
    if bias is not None:
        weights["1.bias"] = bias
    return blobs.save_bytes(pack_weights(weights | more)).digest


def named_with_nul(asked: TrainRound) -> str:
    """An update with another tensor, whose name JSON spells with a NUL. Returns its digest."""
    data = blobs.path_of(changed(asked, zzzzzz=np.zeros(1, np.float32))).read_bytes()
    return blobs.save_bytes(data.replace(b"zzzzzz", rb"\u0000")).digest


def without_bias(asked: TrainRound) -> str:
    weight = map_weights(blobs.path_of(asked.weights.digest))["1.weight"]
    return blobs.save_bytes(pack_weights({"1.weight": weight})).digest


def offer(digest: str, **fields: object) -> UpdateOffer:
    return UpdateOffer.model_validate({"digest": digest, "num_examples": 10, **fields})


def stray_count(far: FarNode) -> int:
    return sum(far.node.strays.values_list("count", flat=True))


def test_a_good_update_is_recorded(asked, nodes):
    verdict = nodes[0].deliver(asked[0], num_examples=700, metrics={"train/loss": 0.5}, seconds_training=1.25)
    assert (verdict.accepted, verdict.reason) == (True, "")
    participation = Participation.objects.get(assignment__index=0)
    assert (participation.state, participation.num_examples, participation.seconds_training) == ("returned", 700, 1.25)
    assert participation.metrics == {"train/loss": 0.5}
    assert participation.size_bytes == blobs.path_of(participation.update_digest).stat().st_size


def test_the_same_update_again_is_accepted_and_counts_once(asked, nodes, conductor):
    for _ in range(3):
        assert nodes[0].deliver(asked[0], value=1).accepted
    assert not nodes[0].deliver(asked[0], value=2).accepted, "another update of the same round"
    assert stray_count(nodes[0]) == 1
    digest = Participation.objects.get(assignment__index=0).update_digest
    nodes[1].deliver(asked[1], value=1)
    conductor.work()
    assert nodes[0].offer(asked[0], offer(digest)).accepted, "after the round closed, and its file is gone"
    assert [r.state for r in Round.objects.all()] == ["closed", "open"]


def test_an_update_of_an_older_round_is_refused_and_counted(asked, nodes, conductor):
    nodes[0].deliver(asked[0], value=1)
    nodes[1].deliver(asked[1], value=1)
    conductor.work()
    verdict = nodes[0].offer(asked[0], offer("0" * 64))
    assert verdict.reason == "The update for round 1 is settled already (returned)."
    assert stray_count(nodes[0]) == 1


def test_an_update_of_an_ended_attempt_is_refused(asked, nodes, owner):
    services.cancel_job(job=Job.objects.get(), actor=owner)
    verdict = nodes[0].deliver(asked[0], value=1)
    assert not verdict.accepted
    assert verdict.reason.endswith("has ended: Cancelled by owner.")
    assert stray_count(nodes[0]) == 1


def test_somebody_elses_attempt_does_not_exist(asked, make_node):
    foreign = make_node("node-3")
    verdict = foreign.deliver(asked[0], value=1)
    assert verdict.reason == f"node-3 was not asked for round 1 of attempt {asked[0].attempt_id}."
    assert not foreign.offer(asked[0].model_copy(update={"attempt_id": 10**9}), offer("0" * 64)).accepted
    assert Stray.objects.get().count == 2
    assert set(Participation.objects.values_list("state", flat=True)) == {"asked"}


def test_bytes_that_are_not_there_leave_the_round_as_it_is(asked, nodes):
    verdict = nodes[0].offer(asked[0], offer(hashlib.sha256(b"nothing").hexdigest()))
    assert verdict.reason == "The update's bytes are not on the server: send them first."
    assert Participation.objects.get(assignment__index=0).state == "asked"
    assert nodes[0].deliver(asked[0]).accepted


BAD = {
    "nan": (lambda a: changed(a, np.full(10, np.nan, np.float32)), "NaN or infinite"),
    "inf": (lambda a: changed(a, np.full(10, -np.inf, np.float32)), "NaN or infinite"),
    "shape": (lambda a: changed(a, np.zeros(11, np.float32)), "shape [11], not [10]"),
    "dtype": (lambda a: changed(a, np.zeros(10, np.float64)), "type F64, not F32"),
    "missing": (without_bias, "lacks tensor '1.bias'"),
    "extra": (lambda a: changed(a, more=np.zeros(1, np.float32)), "'more', which this job's updates do not have"),
    "nul": (named_with_nul, "which this job's updates do not have"),
    "garbage": (lambda a: blobs.save_bytes(b"no tensors at all").digest, "not a safetensors file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_refused_with_its_reason_and_the_round_goes_on(asked, nodes, conductor, kind):
    make, sentence = BAD[kind]
    digest = make(asked[0])
    verdict = nodes[0].offer(asked[0], offer(digest))
    assert not verdict.accepted
    assert sentence in verdict.reason
    refused = Participation.objects.get(assignment__index=0)
    assert (refused.state, refused.state_reason) == ("refused", verdict.reason.replace("\0", "\ufffd"))
    assert not blobs.exists(digest)
    nodes[1].deliver(asked[1], value=1)
    conductor.work()
    assert [r.state for r in Round.objects.all()] == ["closed", "open"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_examples": 0}, "claims 0 examples"),
        ({"num_examples": -5}, "claims -5 examples"),
        ({"num_examples": 10**18}, "'digits' on node-1 has 1,797"),
        ({"seconds_training": float("nan")}, "not a number of seconds"),
        ({"seconds_training": -1.0}, "not a number of seconds"),
        ({"metrics": {f"m{i}": 1.0 for i in range(65)}}, "at most 64 metrics"),
        ({"metrics": {"x" * 101: 1.0}}, "1 to 100 printable characters"),
        ({"metrics": {"train/\0": 1.0}}, "1 to 100 printable characters"),
    ],
)
def test_a_claim_that_cannot_be_is_refused(asked, nodes, fields, sentence):
    verdict = nodes[0].offer(asked[0], offer(changed(asked[0]), **fields))
    assert sentence in verdict.reason
    assert Participation.objects.get(assignment__index=0).state == "refused"


def test_offering_the_rounds_own_weights_does_not_delete_them(asked, nodes, conductor):
    """They have the right names and shapes, so they pass; the blob stays while the round needs it."""
    assert nodes[0].offer(asked[0], offer(asked[0].weights.digest)).accepted
    nodes[1].deliver(asked[1])
    conductor.work()
    assert [r.state for r in Round.objects.all()] == ["closed", "open"]
    services.cancel_job(job=Job.objects.get(), actor=Job.objects.get().owner)
    assert blobs.exists(Job.objects.get().attempts.get().weights_digest)


def test_all_clients_bad_fails_the_job_and_names_them(asked, nodes, conductor):
    for index, node in enumerate(nodes):
        node.offer(asked[index], offer(BAD["nan"][0](asked[index])))
    conductor.work()
    job = Job.objects.get()
    assert job.state == "failed"
    assert job.state_reason.startswith("Round 1 needed 1 update of 2 and got 0. Missing: node-1 (Tensor '1.bias'")


def test_a_round_that_closes_while_its_update_is_read_says_so(asked, nodes, monkeypatch):
    """Its files go with the close: what looked like a broken disk is a lost race."""

    def close_meanwhile(*_: object) -> None:
        round_ = Round.objects.get()
        round_.move_to(Round.State.CLOSING)
        round_.move_to(Round.State.CLOSED)
        raise FileNotFoundError

    monkeypatch.setattr("webapp.jobs.door.check_update", close_meanwhile)
    verdict = services.accept_update(
        node=nodes[0].node, attempt_id=asked[0].attempt_id, round_number=1, offer=offer(changed(asked[0]))
    )
    assert (verdict.accepted, verdict.reason) == (False, "Round 1 takes no more updates: it is closed.")

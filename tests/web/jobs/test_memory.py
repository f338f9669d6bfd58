"""What a strategy remembers: a blob beside the weights, carried from round to round and from attempt to attempt."""

import numpy as np
import pytest
from django.utils import timezone

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.protocol import TrainRound
from trainer.weights import map_weights
from webapp.blobs import services as blobs
from webapp.jobs import closing, services
from webapp.jobs.blob_access import node_may_read_blob
from webapp.jobs.garbage import is_needed
from webapp.jobs.models import Attempt, Job, Round

pytestmark = pytest.mark.django_db(transaction=True)

MOMENTUM = spec_with(FEDERATED, federated={"server_optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5}})
SCAFFOLD = spec_with(
    FEDERATED, federated={"strategy": {"name": "scaffold"}}, training={"optimizer": {"name": "sgd", "lr": 0.1}}
)


def train(nodes, conductor, *, value: float = 1.0) -> list[TrainRound]:
    """Answer the open round; return the messages."""
    asked = [[m for m in node.messages() if isinstance(m, TrainRound)][-1] for node in nodes]
    for node, message in zip(nodes, asked, strict=True):
        assert node.deliver(message, value=value, num_steps=1).accepted
    conductor.work()
    return asked


def memory_now() -> dict[str, np.ndarray]:
    return map_weights(blobs.path_of(Attempt.objects.last().memory_digest))


def test_the_server_moves_on_with_its_momentum(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    start = {k: w.copy() for k, w in map_weights(blobs.path_of(Round.objects.get().weights_digest)).items()}
    # Updates of 1 each round: v = 1, 1.5, 1.75, and the weights move by their sum.
    for velocity, moved in ((1.0, 1.0), (1.5, 2.5), (1.75, 4.25)):
        asked = train(nodes, conductor)
        assert [message.memory for message in asked] == [None, None], "clients need none of it"
        assert {name.partition("/")[0] for name in memory_now()} == {"momentum"}
        for name, weight in map_weights(blobs.path_of(Attempt.objects.get().weights_digest)).items():
            np.testing.assert_allclose(weight, start[name] + moved, rtol=1e-5)
            np.testing.assert_array_equal(memory_now()[f"momentum/{name}"], np.full(weight.shape, velocity))
    assert [r.memory_digest != "" for r in Round.objects.all()] == [False, True, True]
    assert Job.objects.get().state == "finished"


def test_a_new_attempt_takes_the_memory_over(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    train(nodes, conductor)
    before = Attempt.objects.get().memory_digest
    services.cancel_job(job=job, actor=owner)
    for node in nodes:
        node.report(Attempt.objects.get().pk, "released")
    services.resume_job(job=job, actor=owner)
    conductor.work()
    assert Attempt.objects.last().memory_digest == before
    assert Round.objects.last().memory_digest == before
    train(nodes, conductor)
    assert {float(array.flat[0]) for array in memory_now().values()} == {1.5}


@pytest.mark.parametrize("step", ["_record", "_digests_of", "open_next_round", "tell_browsers"])
def test_a_worker_killed_while_it_closes_moves_on_once(team, owner, nodes, conductor, monkeypatch, step):
    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    train(nodes, conductor)
    with monkeypatch.context() as patch:
        patch.setattr(closing, step, die)
        with pytest.raises(Killed):
            train(nodes, conductor)
    past = timezone.now() - 2 * closing.CLOSE_AGAIN_AFTER
    Round.objects.filter(state="closing").update(state_changed_at=past)
    services.sweep_jobs()
    assert list(Round.objects.values_list("number", "state")) == [(1, "closed"), (2, "closed"), (3, "open")]
    assert {float(array.flat[0]) for array in memory_now().values()} == {1.5}
    assert {a.memory_digest for a in Attempt.objects.all()} == {Round.objects.last().memory_digest}


def test_old_memory_is_deleted_and_the_present_one_is_kept(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    digests = []
    for value in (1, 2, 3):
        train(nodes, conductor, value=value)
        digests.append(Attempt.objects.get().memory_digest)
    assert len(set(digests)) == 3
    assert [blobs.exists(digest) for digest in digests] == [False, False, True]
    assert Job.objects.get().state == "finished"
    assert is_needed(digests[-1]), "with more rounds the job goes on from it"


def test_memory_that_is_gone_fails_the_job_with_a_sentence(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    train(nodes, conductor)
    services.cancel_job(job=job, actor=owner)
    for node in nodes:
        node.report(Attempt.objects.get().pk, "released")
    blobs.delete(Attempt.objects.get().memory_digest)
    services.resume_job(job=job, actor=owner)
    conductor.work()
    job.refresh_from_db()
    assert job.state_reason == (
        "The weights to start from are gone from the server's store: clone the job to start anew."
    )


def test_scaffolds_clients_get_the_variate_and_nobody_else_may_read_it(team, owner, nodes, make_node, conductor):
    services.submit_job(team=team, owner=owner, spec=SCAFFOLD)
    conductor.work()
    assert [message.memory for message in train(nodes, conductor, value=0.5)] == [None, None], "it is zero"
    digest = Round.objects.get(number=2).memory_digest
    assert {float(array.flat[0]) for name, array in memory_now().items() if name.startswith("variate/")} == {0.5}
    assert [node_may_read_blob(node.node, digest) for node in (*nodes, make_node("node-3"))] == [True, True, False]
    asked = train(nodes, conductor, value=0.5)
    assert [message.memory.digest for message in asked] == [digest, digest]


def test_a_nodes_repeated_message_names_the_same_memory(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=SCAFFOLD)
    conductor.work()
    train(nodes, conductor)
    first = nodes[1].asked()
    nodes[1].vanish()
    services.sweep_jobs()
    nodes[1].beat()
    services.sweep_jobs()
    assert nodes[1].asked() == first


def test_the_memory_of_other_strategies_is_the_servers_own(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=MOMENTUM)
    conductor.work()
    train(nodes, conductor)
    digest = Round.objects.get(number=2).memory_digest
    assert blobs.exists(digest)
    assert not node_may_read_blob(nodes[0].node, digest)


def test_an_adaptive_clip_norm_is_remembered(team, owner, make_node, conductor):
    nodes = [make_node(f"node-{number:02}") for number in range(12)]
    privacy = {"clip": {"name": "adaptive", "initial_norm": 1.0, "rate": 1.0}, "noise_multiplier": 0.5}
    spec = spec_with(FEDERATED, federated={"clients": {"num": 12}, "privacy": privacy})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    for _ in range(2):
        train(nodes, conductor, value=10.0)
    first, second = (Round.objects.get(number=number).facts for number in (1, 2))
    assert first["clip_norm"] == 1.0
    # All updates are longer than the norm, so it grows, but for the noise on their count by about exp(0.5).
    assert 1.2 < second["clip_norm"] < 2.5
    assert first["num_clipped"] == 12
    assert second["epsilon"] > first["epsilon"] > 0

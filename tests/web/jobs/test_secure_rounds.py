"""A securely aggregated job from submission to its model: the sum is the plain one, whoever drops out."""

from collections.abc import Callable

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.web.jobs.far_end import FEDERATED, Conductor, spec_with
from tests.web.jobs.secure_end import SECURE, MaskedNode
from trainer.protocol import ReceiveModel, TrainRound
from trainer.secure.agreed import threshold_of
from trainer.secure.messages import MaskUpdate, ShareKeys, UnmaskRound
from trainer.secure.quantise import Quantiser
from trainer.sources import BUILTIN_SOURCES
from trainer.weights import Weights, map_weights
from webapp.blobs import services as blobs
from webapp.jobs import aggregation, services
from webapp.jobs.models import Attempt, Job, MaskExchange, Participation, Round

pytestmark = pytest.mark.django_db(transaction=True)
Begin = Callable[..., list[MaskedNode]]


@pytest.fixture
def begin(team, owner, make_node, conductor: Conductor) -> Begin:
    """Submit a masked job for four nodes, whose updates add 0.1, 0.2, 0.3 and 0.4 to each weight with 100 to 400 examples."""

    def start(**federated: object) -> list[MaskedNode]:
        nodes = [MaskedNode(make_node(f"node-{k}"), value=k / 10, num_examples=100 * k) for k in range(1, 5)]
        services.submit_job(team=team, owner=owner, spec=spec_with(SECURE, federated=federated))
        conductor.work()
        return nodes

    return start


def step(conductor: Conductor, *nodes: MaskedNode) -> None:
    """Let the nodes do what they are asked, and the conductor what follows."""
    for node in nodes:
        assert all(verdict.accepted for verdict in node.do_all())
    conductor.work()


def first_weights() -> Weights:
    ref = aggregation.make_initial_weights(Job.objects.get().spec, BUILTIN_SOURCES["digits"])
    return map_weights(blobs.path_of(ref.digest))


def moved() -> Weights:
    """How far the weights have come since they were made."""
    now, first = map_weights(blobs.path_of(Attempt.objects.get().weights_digest)), first_weights()
    return {name: now[name].astype(np.float64) - first[name] for name in first}


def quantised_sum(nodes: list[MaskedNode]) -> Weights:
    return {name: sum(node.plain[name] for node in nodes) for name in nodes[0].plain}


def test_threshold():
    """More than the share, and never more than all: 2/3 of 3 are 2, so it takes 3."""
    assert [threshold_of(2 / 3, n) for n in (3, 4, 5, 6, 8, 9, 100)] == [3, 3, 4, 5, 6, 7, 67]
    assert [threshold_of(1.0, n) for n in (3, 4, 100)] == [3, 4, 100]
    assert all(threshold_of(0.501, n) > n / 2 for n in range(3, 200))


def test_it_goes_from_keys_to_shares_to_updates_to_the_sum(begin, conductor):
    nodes = begin()
    round_ = Round.objects.get()
    assert (round_.phase, round_.num_quorum) == ("keys", 3)
    asked = [node.messages() for node in nodes]
    for node, (message,) in zip(nodes, asked, strict=True):
        assert isinstance(message, TrainRound)
        assert message.masking is not None
        assert message.masking.model_dump() == {"threshold": 3, "num_clients": 4, "max_examples": 1797}
        assert conductor.work() == []
        assert node.do(message).accepted
    # The last keys wake the conductor at once, as all that complete a phase.
    assert conductor.work() == ["advance_attempt"]
    assert Round.objects.get().phase == "shares"
    for node in nodes:
        (message,) = node.messages()
        assert isinstance(message, ShareKeys)
        assert [keys.client for keys in message.roster] == [0, 1, 2, 3]
        assert node.do(message).accepted
    assert conductor.work() == ["advance_attempt"]
    assert Round.objects.get().phase == "updates"
    for index, node in enumerate(nodes):
        (message,) = node.messages()
        assert isinstance(message, MaskUpdate)
        assert set(message.sealed) == {0, 1, 2, 3} - {index}
        assert node.do(message).accepted
    assert conductor.work() == ["advance_attempt"]
    round_.refresh_from_db()
    assert (round_.state, round_.phase) == ("closing", "unmasking")
    for node in nodes[:3]:
        (message,) = node.messages()
        assert message == UnmaskRound(attempt_id=round_.attempt_id, round=1, survivors=[0, 1, 2, 3])
        assert node.do(message).accepted
    assert conductor.work() == ["advance_attempt"], "the threshold of 3 is enough"
    round_.refresh_from_db()
    assert (round_.state, round_.phase, Job.objects.get().progress_done) == ("closed", "", 1)
    # The mean weighted by examples, to the step of the quantisation: 4 times half a step over 1,000 of 1,797 rows.
    quantiser = Quantiser(asked[0][0].masking, 4.0)
    for values in moved().values():
        np.testing.assert_allclose(values, 0.3, atol=4 * 0.5 / quantiser.step * 1.797 + 1e-7)
    weights = [pytest.approx(k / 10) for k in range(1, 5)]
    assert (round_.facts["weights"], "norms" in round_.facts) == (weights, False)


def test_the_sum_is_exactly_the_sum_of_the_quantised_updates(begin, conductor, monkeypatch):
    nodes, sums = begin(), []
    inner = Quantiser.decode
    monkeypatch.setattr(Quantiser, "decode", lambda self, total: (sums.append(total), inner(self, total))[1])
    for _ in range(4):
        step(conductor, *nodes)
    (total,) = sums
    for name, values in quantised_sum(nodes).items():
        np.testing.assert_array_equal(total[name], values)


def test_two_rounds_and_the_model(begin, conductor):
    nodes = begin()
    for _ in range(8):
        step(conductor, *nodes)
    job = Job.objects.get()
    assert (job.state, job.state_reason) == ("finished", "All 2 rounds closed.")
    for values in moved().values():
        np.testing.assert_allclose(values, 2 * 0.3, atol=1e-5)
    assert any(isinstance(message, ReceiveModel) for message in nodes[0].messages())


def test_scaffolds_variates_are_masked_as_well(begin, conductor):
    """The mean over the clients, and the server's variate takes the sum over all of the job's clients."""
    nodes = begin(rounds=1, strategy={"name": "scaffold"})
    for _ in range(4):
        step(conductor, *nodes)
    assert Job.objects.get().state == "finished"
    for values in moved().values():
        np.testing.assert_allclose(values, 0.25, atol=1e-6)
    memory = map_weights(blobs.path_of(Attempt.objects.get().memory_digest))
    assert {name.partition("/")[0] for name in memory} == {"variate"}
    for values in memory.values():
        np.testing.assert_allclose(values, 0.25, atol=1e-6)


def test_nothing_of_the_masks_is_left_when_a_round_has_closed(begin, conductor):
    nodes = begin()
    for _ in range(3):
        step(conductor, *nodes)
    masked = set(Participation.objects.filter(round__number=1).values_list("update_digest", flat=True))
    assert MaskExchange.objects.count() == 4
    assert all(map(blobs.exists, masked))
    step(conductor, *nodes)
    assert not MaskExchange.objects.filter(participation__round__number=1).exists()
    assert not any(map(blobs.exists, masked))


def test_a_plain_round_asks_nothing_about_masks(team, owner, make_node, conductor):
    """And so it costs no query more than before there were any."""
    nodes = [make_node("node-1"), make_node("node-2")]
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    with CaptureQueriesContext(connection) as captured:
        conductor.work()
        for node in nodes:
            assert node.deliver(node.asked(), value=1).accepted
        services.sweep_jobs()
        services.cancel_job(job=Job.objects.get(), actor=owner)
    assert Round.objects.filter(state="closed").exists()
    assert not [query for query in captured.captured_queries if "maskexchange" in query["sql"]]


PHASES = ["keys", "shares", "update", "answer"]


@pytest.mark.parametrize("gone_before", PHASES[1:])
def test_one_that_drops_out_is_in_the_sum_only_if_its_update_was(begin, conductor, gone_before):
    """Its agent starts anew, and what it knew of the round is gone: nobody waits for it, and the rest unmasks without it."""
    nodes = begin(rounds=1)
    for phase in PHASES:
        if phase == gone_before:
            restart(nodes[3])
            step(conductor, *nodes[:3])
            services.sweep_jobs()
        else:
            step(conductor, *(nodes[:3] if PHASES.index(phase) > PHASES.index(gone_before) else nodes))
    job = Job.objects.get()
    assert (job.state, job.progress_done) == ("finished", 1)
    last = Participation.objects.last()
    expected = 0.3
    if gone_before == "answer":
        assert last.state == "returned"
    else:
        assert last.state == "lost"
        assert last.state_reason == (
            "node-4 restarted. Its masks of round 1 were in its memory: it takes part again in the next round."
        )
        expected = (1 * 0.1 + 2 * 0.2 + 3 * 0.3) / 6
    for values in moved().values():
        np.testing.assert_allclose(values, expected, atol=1e-6)


def restart(node: MaskedNode) -> None:
    """Start its agent anew: another boot, whose queue was emptied, and no session."""
    node.messages()
    node.far.boot_id = "boot-2"
    node.far.beat()


def test_one_that_restarts_before_its_keys_are_out_begins_anew(begin, conductor):
    nodes = begin(rounds=1)
    restart(nodes[3])
    services.sweep_jobs()
    for _ in PHASES:
        step(conductor, *nodes)
    assert Job.objects.get().state == "finished"
    assert set(Participation.objects.values_list("state", flat=True)) == {"returned"}


def test_one_that_restarts_after_its_keys_posts_others(begin, conductor):
    """The last keys of a client count, until the roster is out: those of a dead session would shut it out."""
    nodes = begin(rounds=1)
    (asked,) = nodes[3].messages()
    assert nodes[3].do(asked).accepted
    old = MaskExchange.objects.get().keys
    restart(nodes[3])
    services.sweep_jobs()
    for _ in PHASES:
        step(conductor, *nodes)
        assert not MaskExchange.objects.filter(keys=old).exists()
    assert set(Participation.objects.values_list("state", flat=True)) == {"returned"}


def test_one_that_missed_a_round_is_in_the_next(begin, conductor):
    nodes = begin()
    step(conductor, *nodes)
    restart(nodes[3])
    for _ in PHASES[1:]:
        step(conductor, *nodes[:3])
        services.sweep_jobs()
    assert Job.objects.get().progress_done == 1
    for _ in PHASES:
        step(conductor, *nodes)
    assert Job.objects.get().state == "finished"
    assert list(Participation.objects.filter(assignment__index=3).values_list("state", flat=True)) == [
        "lost",
        "returned",
    ]

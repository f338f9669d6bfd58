"""The door for simulated rounds: recorded once, all or none, from rank 0 of a running attempt alone."""

from datetime import UTC, datetime

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.web.jobs.far_end import DISTRIBUTED, FEDERATED, FarNode, spec_with
from tests.web.jobs.simulator import SIMULATED, Simulator, begin
from trainer.federated.draw import draw_clients
from trainer.simulation.messages import SimulatedClient
from trainer.weights import pack_weights
from webapp.blobs import services as blobs
from webapp.core.models import Transition
from webapp.jobs import services
from webapp.jobs.models import Attempt, Job, Participation, Round, Stray

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(make_node) -> FarNode:
    return make_node("node-1")


@pytest.fixture
def start(team, owner, node, conductor):
    """Start a simulation with changes to its section `federated`, and be its rank 0."""

    def start(**federated: object) -> Simulator:
        services.submit_job(team=team, owner=owner, spec=spec_with(SIMULATED, federated=federated))
        conductor.work()
        return begin(node)

    return start


def test_rounds_become_closed_rows(start):
    rank_0 = start()
    first = Attempt.objects.get().weights_digest
    offer = rank_0.pack(1, 3)
    assert rank_0.post(offer).accepted
    one, two, three = Round.objects.all()
    assert {r.state for r in (one, two, three)} == {"closed"}
    assert (one.weights_digest, two.weights_digest, three.result_digest) == (first, "", offer.weights)
    assert one.opened_at == datetime.fromtimestamp(rank_0.began + 2, UTC)
    assert (one.closed_at - one.opened_at).total_seconds() == 1.5
    assert two.metrics == {"train/loss": 0.5, "server/loss": 1.0, "server/accuracy": 0.9}
    drawn = draw_clients(SIMULATED, 2)
    assert two.facts["num_clients"] == 4
    assert two.facts["num_examples"] == sum(k % 5 + 1 for k in drawn)
    assert two.facts["seconds_training"] == 1.0
    assert [client["client"] for client in two.facts["clients"]] == drawn
    assert two.facts["clients"][0] == {
        "client": drawn[0],
        "num_examples": drawn[0] % 5 + 1,
        "num_steps": 1,
        "seconds_training": 0.25,
        "loss": 0.5,
        "norm": 1.0,
    }
    attempt, job = Attempt.objects.get(), Job.objects.get()
    assert (attempt.weights_digest, job.progress_done, job.progress_total) == (offer.weights, 3, 5)
    assert attempt.weights_size_bytes == blobs.ref_of(offer.weights).size_bytes
    assert not blobs.exists(first)
    assert not Participation.objects.exists()


def test_one_transition_tells_of_a_pack(start):
    rank_0 = start()
    before = Transition.objects.count()
    assert rank_0.post(rank_0.pack(1, 3)).accepted
    assert rank_0.post(rank_0.pack(4, 4)).accepted
    told = Transition.objects.order_by("id")[before:]
    assert [(t.new, t.reason) for t in told] == [
        ("closed", "Rounds 1 to 3 came from node-1."),
        ("closed", "Round 4 came from node-1."),
    ]


def test_a_pack_that_comes_twice_is_recorded_once(start):
    rank_0 = start()
    offer = rank_0.pack(1, 2)
    assert rank_0.post(offer).accepted
    rows = list(Round.objects.values())
    assert rank_0.post(offer).accepted
    assert list(Round.objects.values()) == rows
    assert blobs.exists(offer.weights)
    assert not Stray.objects.exists()


def test_of_a_pack_that_is_recorded_in_part_the_rest_is_taken(start):
    rank_0 = start()
    assert rank_0.post(rank_0.pack(1, 2)).accepted
    assert rank_0.post(rank_0.pack(1, 4)).accepted
    assert list(Round.objects.values_list("number", flat=True)) == [1, 2, 3, 4]


def test_a_gap_is_refused(start):
    rank_0 = start()
    assert rank_0.post(rank_0.pack(1, 1)).accepted
    verdict = rank_0.post(rank_0.pack(3, 4))
    assert (verdict.accepted, verdict.reason) == (
        False,
        "Round 3 does not follow round 1, the last one that is recorded: send round 2 first.",
    )
    twice = rank_0.pack(2, 3).rounds + rank_0.pack(3, 3).rounds
    assert "are not consecutive" in rank_0.post(rank_0.pack(2, 3, rounds=twice)).reason
    assert rank_0.post(rank_0.pack(2, 6)).reason == "Round 6 is more than the 5 rounds that the job is to have."
    assert Round.objects.count() == 1


def test_the_memory_is_kept_and_checked(start):
    rank_0 = start(server_optimizer={"name": "sgd", "momentum": 0.9})
    verdict = rank_0.post(rank_0.pack(1, 1))
    assert verdict.reason == "Round 1: The strategy's memory is missing: this job goes on from a momentum."

    def memory(value: float) -> str:
        arrays = {f"momentum/{name}": np.full_like(array, value) for name, array in rank_0.base.items()}
        return blobs.save_bytes(pack_weights(arrays)).digest

    nan = memory(np.nan)
    assert "of the strategy's memory holds NaN" in rank_0.post(rank_0.pack(1, 1, memory=nan)).reason
    assert not blobs.exists(nan)
    one, two = memory(1), memory(2)
    assert rank_0.post(rank_0.pack(1, 1, memory=one)).accepted
    assert Attempt.objects.get().memory_digest == one
    assert rank_0.post(rank_0.pack(2, 2, memory=two)).accepted
    assert not blobs.exists(one)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"weight": np.full((10, 64), np.nan, np.float32)}, "holds NaN or infinite values: lower the learning rate."),
        (
            {"weight": np.zeros((10, 65), np.float32)},
            "is F32 of the shape [10, 65], and must be F32 of the shape [10, 64]",
        ),
        (
            {"more": np.zeros(1, np.float32)},
            "Tensor 'more' of the weights is F32 of the shape [1], and must be absent.",
        ),
    ],
    ids=["NaN", "shape", "another tensor"],
)
def test_weights_that_do_not_fit_are_refused(start, arrays, sentence):
    rank_0 = start()
    changed = {next((own for own in rank_0.base if own.endswith(name)), name): a for name, a in arrays.items()}
    digest = blobs.save_bytes(pack_weights({**rank_0.base, **changed})).digest
    verdict = rank_0.post(rank_0.pack(1, 1, weights=digest))
    assert not verdict.accepted
    assert verdict.reason.startswith("Round 1: Tensor '")
    assert sentence in verdict.reason
    assert not blobs.exists(digest)
    assert not Round.objects.exists()
    assert blobs.exists(Attempt.objects.get().weights_digest)


def test_what_is_no_file_of_weights_is_refused(start):
    rank_0 = start()
    digest = blobs.save_bytes(b"nonsense").digest
    assert rank_0.post(rank_0.pack(1, 1, weights=digest)).reason.startswith("Round 1: The weights cannot be read: ")
    missing = rank_0.post(rank_0.pack(1, 1, weights="f" * 64))
    assert missing.reason == "The weights' bytes are not on the server: send them first."
    assert missing.missing_bytes


def test_a_diverged_loss_arrives(start):
    rank_0 = start()
    said = rank_0.round(1, metrics={"train/loss": float("nan")})
    clients = [said.clients[0].model_copy(update={"loss": float("inf")}), *said.clients[1:]]
    assert rank_0.post(rank_0.pack(1, 1, rounds=[said.model_copy(update={"clients": clients})])).accepted
    round_ = Round.objects.get()
    assert round_.metrics == {"train/loss": "NaN"}
    assert round_.facts["clients"][0]["loss"] == "Infinity"


def test_of_many_clients_the_first_hundred_are_told(start):
    rank_0 = start(clients={"simulate": 200, "num": 1, "per_round": 150})
    assert rank_0.post(rank_0.pack(1, 1)).accepted
    facts, drawn = Round.objects.get().facts, draw_clients(rank_0.asked.spec, 1)
    assert (facts["num_clients"], facts["num_examples"]) == (150, sum(k % 5 + 1 for k in drawn))
    assert [client["client"] for client in facts["clients"]] == drawn[:100]
    assert len(facts["norms"]) == 100


def test_a_sentence_ends_the_job_early(start, node, conductor):
    rank_0 = start(stop={"metric": "train/loss", "target": 0.5})
    rounds = [rank_0.round(1), rank_0.round(2, stopped="train/loss is 0.5, and the target was 0.5.")]
    assert rank_0.post(rank_0.pack(1, 2, rounds=rounds)).accepted
    said = "Stopped after round 2 of 5: train/loss is 0.5, and the target was 0.5."
    assert list(Round.objects.values_list("state_reason", flat=True)) == ["", said]
    node.report(rank_0.asked.attempt_id, "finished")
    conductor.work()
    job = Job.objects.get()
    assert (job.state, job.state_reason, job.progress_done, job.progress_total) == ("finished", said, 2, 2)


def test_a_stop_that_goes_on_is_refused(start):
    rank_0 = start(stop={"metric": "train/loss", "target": 0.5})
    rounds = [rank_0.round(1, stopped="the target was reached."), rank_0.round(2)]
    assert "is followed by another" in rank_0.post(rank_0.pack(1, 2, rounds=rounds)).reason


@pytest.mark.parametrize(
    ("number", "stopped"),
    [(1, "I am\0tired."), (2, ""), (2, "Another sentence.")],
    ids=["early", "late", "other words"],
)
def test_whether_the_job_ends_is_computed_again(start, number, stopped):
    rank_0 = start(stop={"metric": "train/loss", "target": 0.5})
    rounds = [*rank_0.pack(1, number).rounds[:-1], rank_0.round(number, stopped=stopped)]
    verdict = rank_0.post(rank_0.pack(1, number, rounds=rounds))
    assert not verdict.accepted
    assert verdict.reason.startswith(f"Round {number} does not say rightly whether the job ends with it.")
    assert not Round.objects.exists()


def test_facts_of_privacy_are_for_jobs_that_have_it(start):
    rank_0 = start()
    said = rank_0.round(1)
    verdict = rank_0.post(rank_0.pack(1, 1, rounds=[said.model_copy(update={"facts": said.facts | {"epsilon": 1.0}})]))
    assert verdict.reason == "Round 1 tells of privacy, and the job has none."


@pytest.mark.parametrize("moved_days", [-3, 3, 2_900_000], ids=["before", "after", "the year 9966"])
def test_times_that_are_not_of_the_attempt_are_refused(start, moved_days):
    rank_0 = start()
    said = rank_0.round(1)
    moved = {name: getattr(said, name) + moved_days * 86_400_000 for name in ("opened_ms", "closed_ms")}
    verdict = rank_0.post(rank_0.pack(1, 1, rounds=[said.model_copy(update=moved)]))
    assert verdict.reason.endswith("set the node's clock.")


def test_who_is_not_rank_0_is_not_heard(team, owner, nodes, make_node, conductor):
    spec = spec_with(SIMULATED, federated={"clients": {"simulate": 20, "per_round": 4, "num": 2}})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    rank_0, other = begin(nodes[0]), begin(nodes[1])
    stranger = make_node("node-3")
    for far in (other.far, stranger):
        verdict = services.record_simulated(node=far.node, attempt_id=rank_0.asked.attempt_id, offer=rank_0.pack(1, 1))
        sentence = f"{far.node.name} does not host rank 0 of a simulation in attempt {rank_0.asked.attempt_id}."
        assert (verdict.accepted, verdict.reason) == (False, sentence)
        assert Stray.objects.get(node=far.node).last_reason == sentence
    assert not Round.objects.exists()
    assert rank_0.post(rank_0.pack(1, 1)).accepted


@pytest.mark.parametrize("spec", [FEDERATED, DISTRIBUTED], ids=["federated", "distributed"])
def test_another_kind_of_job_takes_no_rounds(team, owner, node, make_node, conductor, start, spec):
    offer = start().pack(1, 1)
    services.cancel_job(job=Job.objects.get(), actor=owner)
    node.report(Attempt.objects.get().pk, "released")
    make_node("node-2")
    job = services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    attempt = Attempt.objects.get(job=job)
    verdict = services.record_simulated(node=node.node, attempt_id=attempt.pk, offer=offer)
    assert verdict.reason == f"node-1 does not host rank 0 of a simulation in attempt {attempt.pk}."


def test_after_a_cancel_a_pack_is_stray(start, node):
    rank_0 = start()
    offer = rank_0.pack(1, 2)
    job = Job.objects.get()
    services.cancel_job(job=job, actor=job.owner)
    verdict = rank_0.post(offer)
    assert (verdict.accepted, verdict.reason) == (
        False,
        f"Attempt 1 of job {job.pk} has ended: Cancelled by owner.",
    )
    assert not Round.objects.exists()
    assert Stray.objects.get().kind == "update"
    job.refresh_from_db()
    assert (job.state, job.progress_done) == ("cancelled", 0)


def test_a_client_that_was_not_drawn_is_refused(start):
    rank_0 = start()
    said = rank_0.round(1)
    foreign = next(k for k in range(20) if k not in draw_clients(SIMULATED, 1))
    clients = sorted(
        [SimulatedClient(client=foreign, num_examples=1, num_steps=1), *said.clients[1:]], key=lambda c: c.client
    )
    verdict = rank_0.post(rank_0.pack(1, 1, rounds=[said.model_copy(update={"clients": clients})]))
    assert verdict.reason == f"Client {foreign} was not drawn for round 1: is the node's version the server's?"


def test_a_long_pack_costs_no_more_queries_than_a_short_one(start, django_assert_num_queries):
    rank_0 = start()
    assert rank_0.post(rank_0.pack(1, 1)).accepted
    one, three = rank_0.pack(2, 2), rank_0.pack(3, 5)
    with CaptureQueriesContext(connection) as short:
        assert rank_0.post(one).accepted
    with django_assert_num_queries(len(short)):
        assert rank_0.post(three).accepted
    assert len(short) <= 20

"""A federated job from submission to its model, through the broker and the door."""

import math

import numpy as np
import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.federated.draw import draw_clients
from trainer.protocol import ReceiveModel, StopAttempt
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from trainer.weights import map_weights, read_metadata
from webapp.blobs import services as blobs
from webapp.jobs import aggregation, services
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Participation, Round
from webapp.telemetry.models import Series

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_trains_round_by_round_and_leaves_its_model(team, owner, nodes, conductor):
    job = services.submit_job(team=team, owner=owner, spec=FEDERATED)
    assert conductor.work()[-2:] == ["schedule_jobs", "advance_attempt"]
    for number in (1, 2, 3):
        asked = [node.asked() for node in nodes]
        assert [(a.round, a.client, a.num_clients) for a in asked] == [(number, 0, 2), (number, 1, 2)]
        assert asked[0].spec == FEDERATED
        # 100 examples add 1 and 300 add 2: the weighted mean is 1.75.
        nodes[0].deliver(asked[0], value=1, num_examples=100, metrics={"train/loss": 1.0}, seconds_training=0.5)
        assert conductor.work() == []
        nodes[1].deliver(asked[1], value=2, num_examples=300, metrics={"train/loss": 3.0}, seconds_training=0.7)
        conductor.work()
        job.refresh_from_db()
        assert job.progress_done == number
    assert (job.state, job.state_reason, job.waiting_for) == ("finished", "All 3 rounds closed.", None)
    assert [r.metrics for r in Round.objects.all()] == [{"train/loss": 2.5}] * 3
    series = Series.objects.get(name="train/loss", source="aggregate")
    assert (series.count, series.last_step, series.last_value) == (3, 3, 2.5)

    artifact = Artifact.objects.get()
    path = blobs.path_of(artifact.digest)
    assert artifact.name == "model.safetensors"
    assert JobSpec.model_validate_json(read_metadata(path)["spec"]) == FEDERATED
    for name, weights in map_weights(path).items():
        np.testing.assert_allclose(weights, first_value(job, name) + 3 * 1.75, rtol=1e-6)

    for node in nodes:
        stop, keep = node.messages()
        assert isinstance(stop, StopAttempt)
        assert isinstance(keep, ReceiveModel)
        assert keep.weights.digest == artifact.digest
        node.report(stop.attempt_id, "model_kept")
        node.report(stop.attempt_id, "released")
    assert set(Assignment.objects.values_list("state", flat=True)) == {"released"}
    assert not Assignment.objects.filter(model_kept_at=None).exists()


def first_value(job: Job, name: str) -> np.ndarray:
    """The initial weights, made again: the same spec gives the same bytes."""
    ref = aggregation.make_initial_weights(job.spec, BUILTIN_SOURCES["digits"])
    return map_weights(blobs.path_of(ref.digest))[name]


def test_closed_rounds_leave_no_update_behind(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    for number in (1, 2, 3):
        asked = [node.asked() for node in nodes]
        before = asked[0].weights.digest
        for index, node in enumerate(nodes):
            node.deliver(asked[index], value=number + index)
        updates = set(Participation.objects.filter(round__number=number).values_list("update_digest", flat=True))
        conductor.work()
        assert not any(blobs.exists(digest) for digest in updates | {before})
    # What is left: the model, and the weights to go on from.
    kept = {Artifact.objects.get().digest, Attempt.objects.get().weights_digest}
    assert {p.name for p in blobs.path_of("0" * 64).parents[2].rglob("*") if p.is_file()} == kept


def test_two_jobs_with_one_seed_do_not_delete_each_others_blobs(team, owner, nodes, conductor):
    for _ in range(2):
        services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"rounds": 1}))
    conductor.work()
    asked = [node.messages() for node in nodes]
    for messages, node in zip(asked, nodes, strict=True):
        for message in messages:
            assert node.deliver(message, value=1).accepted
        node.deliver(messages[0], value=1)
    conductor.work()
    assert [job.state for job in Job.objects.all()] == ["finished", "finished"]


def test_nan_metrics_are_kept_as_what_they_are(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=FEDERATED)
    conductor.work()
    for node in nodes:
        assert node.deliver(node.asked(), metrics={"train/loss": math.nan, "test/loss": math.inf}).accepted
    conductor.work()
    assert Round.objects.get(number=1).metrics == {"train/loss": "NaN", "test/loss": "Infinity"}
    assert Series.objects.get(name="train/loss").count == 1


def test_weights_that_went_out_are_drawn_where_the_round_before_ended(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"local_epochs": 5}))
    conductor.work()
    for number in (1, 2):
        for node in nodes:
            node.deliver(node.asked(), metrics={"global/loss": number, "test/loss": number})
        conductor.work()
    assert Series.objects.get(name="global/loss").last_step == 5
    assert Series.objects.get(name="test/loss").last_step == 10


def test_a_part_of_the_clients_is_drawn_by_the_seed(team, owner, nodes, conductor):
    spec = spec_with(FEDERATED, federated={"clients": {"num": 2, "fraction": 0.5}})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    drawn = []
    for _ in range(3):
        (message,) = [m for node in nodes for m in node.messages()]
        drawn.append(message.client)
        nodes[message.client].deliver(message)
        conductor.work()
    assert drawn == [draw_clients(spec, number)[0] for number in (1, 2, 3)]

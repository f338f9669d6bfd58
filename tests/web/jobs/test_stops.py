"""Jobs that end before their last round: the sentence, the model, and the rows that say so."""

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.federated.privacy import epsilon_after
from trainer.protocol import ReceiveModel, TrainRound
from webapp.blobs import services as blobs
from webapp.core.errors import Refusal
from webapp.jobs import aggregation, closing, federated, services
from webapp.jobs.models import Artifact, Attempt, Job, Participation, Round
from webapp.jobs.selectors import check_spec

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def submit(team, owner, conductor):
    def submit(**changes: object) -> Job:
        job = services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"rounds": 9, **changes}))
        conductor.work()
        return job

    return submit


@pytest.fixture
def train(nodes, conductor):
    """Answer the open round with this test loss, from as many nodes; return the messages."""

    def train(loss: float | None, num_nodes: int = 2) -> list[TrainRound]:
        asked = [next(m for m in node.messages() if isinstance(m, TrainRound)) for node in nodes]
        for node, message in zip(nodes[:num_nodes], asked, strict=False):
            assert node.deliver(message, value=0.1, metrics={} if loss is None else {"test/loss": loss}).accepted
        conductor.work()
        return asked

    return train


def test_it_stops_when_nothing_gets_better(submit, train, nodes):
    job = submit(stop={"patience": 2})
    for loss in (3, 2, 2.5, 2.25):
        assert Job.objects.get().state == "running"
        train(loss)
    job.refresh_from_db()
    sentence = "Stopped after round 4 of 9: test/loss has not improved for 2 rounds."
    assert (job.state, job.state_reason) == ("finished", sentence)
    assert (job.progress_done, job.progress_total, job.progress_planned) == (4, 4, 9)
    assert list(Round.objects.values_list("number", "state_reason")) == [(1, ""), (2, ""), (3, ""), (4, sentence)]
    model = Artifact.objects.get()
    for node in nodes:
        assert [m.weights.digest for m in node.messages() if isinstance(m, ReceiveModel)] == [model.digest]


def test_a_round_hears_of_those_before_it_from_the_last_one_alone(submit, train, monkeypatch):
    read = []
    inner = closing.measured_before
    monkeypatch.setattr(closing, "measured_before", lambda *args: read.append(args) or inner(*args))
    submit(evaluate_every=2, stop={"patience": 5, "target": 0.5, "min_delta": 0.25})
    for loss in (None, 3, None, float("nan"), None, 2.875, None):
        train(loss)
    assert len(read) == 1
    assert Round.objects.get(number=7).facts["watched"] == {"history": [[2, "3.0"]], "resumed_at": 0}
    train(2.8125)
    assert Job.objects.get().state_reason == (
        "Stopped after round 8 of 9: test/loss has not improved by 0.25 for 6 rounds."
    )


def test_it_stops_at_its_target_and_says_what_is_missing(submit, train, nodes, conductor):
    submit(stop={"target": 1.0})
    asked = train(2, num_nodes=1)
    nodes[1].report(asked[1].attempt_id, "failed", "The runner was killed.", 1)
    conductor.work()
    train(0.5)
    assert Job.objects.get().state_reason == (
        "Stopped after round 2 of 9: test/loss is 0.5, and the target was 1. 1 update was missing."
    )


def test_a_goal_reached_in_the_last_round_is_no_early_stop(submit, train):
    submit(rounds=2, stop={"target": 1.0})
    train(2)
    train(0.5)
    assert Job.objects.get().state_reason == "All 2 rounds closed."


def test_rounds_that_are_not_evaluated_are_not_judged(submit, train):
    submit(evaluate_every=2, stop={"patience": 2})
    asked = [train(loss)[0].evaluate for loss in (None, 1.0, None, 1.0)]
    assert asked == [False, True, False, True]
    assert Job.objects.get().state_reason == "Stopped after round 4 of 9: test/loss has not improved for 2 rounds."


@pytest.mark.parametrize(
    ("module", "step"), [(closing, "tell_browsers"), (federated, "finish_federated"), (aggregation, "export_model")]
)
def test_a_worker_killed_while_it_stops_is_taken_over(submit, train, nodes, conductor, monkeypatch, module, step):
    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    submit(stop={"patience": 1})
    train(1)
    with monkeypatch.context() as patch:
        patch.setattr(module, step, die)
        with pytest.raises(Killed):
            train(2)
    for _ in range(2):
        past = Round.objects.get(number=1).opened_at - 2 * closing.CLOSE_AGAIN_AFTER
        Round.objects.filter(state="closing").update(state_changed_at=past)
        services.sweep_jobs()
    job = Job.objects.get()
    assert (job.state, job.progress_total) == ("finished", 2)
    assert job.state_reason == "Stopped after round 2 of 9: test/loss has not improved for 1 round."
    assert Round.objects.count() == 2


# --- privacy ----------------------------------------------------------------------------------------------------------


def budget(spec, *, rounds: float) -> dict[str, object]:
    """Privacy whose epsilon lasts for so many rounds of all clients."""
    private = spec_with(spec, federated={"privacy": {"noise_multiplier": 4.0}}).federated
    low, high = (epsilon_after(private.privacy, private.clients, n) for n in (int(rounds), int(rounds) + 1))
    return {"noise_multiplier": 4.0, "max_epsilon": (low + high) / 2}


def test_it_ends_with_the_last_round_within_its_epsilon(submit, train, owner):
    privacy = budget(FEDERATED, rounds=3)
    job = submit(privacy=privacy, evaluate_every=2)
    asked = [train(1)[0].evaluate for _ in range(3)]
    assert asked == [False, True, True]
    job.refresh_from_db()
    limit = privacy["max_epsilon"]
    assert job.state == "finished"
    assert job.state_reason == (
        f"Stopped after round 3 of 9: one more round would spend more than the epsilon of {limit:g} that privacy.max_epsilon "
        "allows."
    )
    spec = job.spec.federated
    spent = [round_.facts["epsilon"] for round_ in Round.objects.all()]
    assert spent == [epsilon_after(spec.privacy, spec.clients, number) for number in (1, 2, 3)]
    with pytest.raises(
        Refusal, match=r"Round 4 would bring epsilon to .* with a larger noise_multiplier or max_epsilon"
    ):
        services.resume_job(job=job, actor=owner, rounds=1)


def test_a_job_that_cannot_afford_a_round_is_not_submitted_and_never_trains(submit, team, nodes):
    privacy = {"noise_multiplier": 1.0, "max_epsilon": 0.5}
    raw = spec_with(FEDERATED, federated={"privacy": privacy}).model_dump(mode="json")
    (problem,) = check_spec(team=team, raw=raw)
    assert problem.loc == ("federated", "privacy", "max_epsilon")
    assert problem.message.startswith("One round alone costs an epsilon of ")
    # Submitted behind the checks, it ends before anyone is asked.
    submit(privacy=privacy)
    assert Job.objects.get().state_reason.startswith("Round 1 would bring epsilon to ")
    assert Round.objects.count() == 0
    assert not any(isinstance(m, TrainRound) for node in nodes for m in node.messages())


def test_the_noise_of_a_result_that_is_not_recorded_does_not_stay(submit, train, nodes, owner, monkeypatch):
    """Two noisy results of one round would show what the noise hides."""
    inner, made = aggregation.aggregate, []

    def twice(*args, **kwargs):
        result = inner(*args, **kwargs)
        made.append(result.weights.digest)
        if len(made) == 1:
            monkeypatch.setattr(closing, "_computed_here", set())  # the sweep of another process
            services.sweep_jobs()
            past = Round.objects.get().opened_at - 2 * closing.CLOSE_AGAIN_AFTER
            Round.objects.update(state_changed_at=past)
            services.advance_attempt(attempt_id=Attempt.objects.get().pk)
        return result

    monkeypatch.setattr(aggregation, "aggregate", twice)
    submit(privacy={"noise_multiplier": 1.0})
    train(1)
    assert len(set(made)) == 2
    assert Attempt.objects.get().weights_digest == made[1]
    assert [blobs.exists(digest) for digest in made] == [False, True]
    assert Participation.objects.filter(round__number=2).count() == 2

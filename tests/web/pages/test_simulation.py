"""The page of a simulation: its rounds, their virtual clients, the labels, the nodes, and the form's words."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from tests.conftest import browser_of
from tests.web.jobs.simulator import Simulator
from tests.web.pages.conftest import enrol, submit
from tests.web.pages.test_new_job import typed
from tests.web.pages.test_rounds import part_of, text_of
from trainer.federated.draw import draw_clients
from trainer.message import BlobRef
from trainer.protocol import RunRanks
from trainer.simulation.messages import RoundStart, SimulatedRounds
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from trainer.weights import pack_weights
from webapp.blobs.services import save_bytes
from webapp.fleet.models import Node
from webapp.jobs import services
from webapp.jobs.form_summary import summary
from webapp.jobs.models import Assignment, Attempt, Job, Round
from webapp.jobs.page_selectors import expected_curves, progress_of


@pytest.fixture
def node(admin) -> Node:
    return enrol("node-a", admin)


@pytest.fixture
def job(team, owner) -> Job:
    return submit(team, owner, "digits-simulation")


class Host:
    """The node of rank 0, as much of it as the door for rounds needs."""

    def __init__(self, job: Job, node: Node) -> None:
        self.job, self.node = job, node
        self.base = {"0.weight": np.zeros((2, 3), np.float32)}
        weights = save_bytes(pack_weights(self.base))
        job.move_to(Job.State.RUNNING, "Started on node-a.")
        self.attempt = Attempt.objects.create(
            job=job, number=job.attempts.count() + 1, state="running", weights_digest=weights.digest
        )
        Assignment.objects.create(attempt=self.attempt, node=node, index=0, slots=2, state="active")
        start = RoundStart(round=1, last_round=20, weights=BlobRef(digest=weights.digest, size_bytes=1))
        asked = RunRanks(
            job_id=job.pk, attempt_id=self.attempt.pk, spec=job.spec, group_rank=0, num_groups=1, start=start
        )
        self.simulator = Simulator(None, asked, self.base)

    def post(self, offer: SimulatedRounds) -> None:
        verdict = services.record_simulated(node=self.node, attempt_id=self.attempt.pk, offer=offer)
        assert verdict.accepted, verdict.reason
        self.job.refresh_from_db()


@pytest.fixture
def host(job, node) -> Host:
    return Host(job, node)


def test_before_the_first_rounds_the_page_says_what_it_waits_for(job, owner):
    assert "The first rounds come when the nodes have room for the job's processes." in part_of(job, owner, "rounds")


def test_a_round_is_a_row(host, owner):
    host.post(host.simulator.pack(1, 2))
    num = sum(k % 5 + 1 for k in draw_clients(host.job.spec, 2))
    # 1.5 s in all, of which ten clients took 0.25 s each on two processes.
    assert f"2 Closed 10 {num} 1.5 s 250 ms 0.5 1 0.9" in text_of(part_of(host.job, owner, "rounds"))


def test_an_opened_round_shows_its_virtual_clients(host, owner):
    host.post(host.simulator.pack(1, 1))
    round_ = Round.objects.get()
    said = text_of(part_of(host.job, owner, "rounds", f"?open={round_.pk}"))
    first = draw_clients(host.job.spec, 1)[0]
    assert f"{first} {first % 5 + 1} 1 250 ms 10.0 % 1 0.5" in said
    assert "The first" not in said


def test_of_many_clients_the_first_hundred_are_shown(team, owner, node):
    job = submit(team, owner, "digits-simulation")
    job.spec_json["federated"]["clients"] |= {"simulate": 300, "per_round": 250}
    job.save(update_fields=["spec_json"])
    host = Host(job, node)
    host.post(host.simulator.pack(1, 1))
    said = part_of(job, owner, "rounds", f"?open={Round.objects.get().pk}")
    assert "The first 100 of 250 clients." in said
    assert said.count("250 ms") == 100


def test_who_was_cut_or_left_out_is_said(host, owner):
    said = host.simulator.round(1)
    first = said.clients[0].client
    facts = said.facts | {"left_out": [first], "num_clipped": 3}
    host.post(host.simulator.pack(1, 1, rounds=[said.model_copy(update={"facts": facts})]))
    shown = text_of(part_of(host.job, owner, "rounds", f"?open={Round.objects.get().pk}"))
    assert "10 1 left out 3 clipped" in shown
    assert f"{first} left out" in shown


def test_the_labels_are_those_of_the_first_clients(host, owner):
    counts = [{str(client % 10): 7} for client in range(100)]
    assert "–" in text_of(part_of(host.job, owner, "labels"))
    host.post(host.simulator.pack(1, 1, label_counts=counts))
    host.post(host.simulator.pack(2, 2))
    said = text_of(part_of(host.job, owner, "labels"))
    assert "Client Labels Rows 0 1 2" in said
    assert "99 9: 7 7 0 0 0 0 0 0 0 0 0 7" in said
    assert [("label_counts" in r.facts) for r in Round.objects.all()] == [True, False]


def test_what_an_earlier_attempt_said_of_the_labels_stays(host, node, owner):
    host.post(host.simulator.pack(1, 1, label_counts=[{"3": 5}] * 100))
    host.attempt.move_to("failed", "node-a stopped answering.")
    Job.objects.filter(pk=host.job.pk).update(state="queued")
    host.job.refresh_from_db()
    again = Host(host.job, node)
    again.post(again.simulator.pack(2, 2))
    assert "99 3: 5 5 0 0 0 5" in text_of(part_of(host.job, owner, "labels"))


def test_the_nodes_panel_has_the_ranks(host, owner):
    said = text_of(part_of(host.job, owner, "nodes"))
    assert "Ranks Node Slots Work 0–1 node-a" in said


def test_the_charts_are_of_the_mean_and_of_the_new_weights(job):
    assert expected_curves(job) == {"server/loss": 1, "train/loss": 1, "server/accuracy": 1, "train/accuracy": 1}
    job.spec_json["federated"]["clients"] |= {"simulate": 12, "per_round": 10}
    assert expected_curves(job)["train/loss"] == 13


def test_the_time_left_counts_the_rounds_of_this_attempt(host):
    host.post(host.simulator.pack(1, 5))
    Attempt.objects.update(started_at=timezone.now() - timedelta(seconds=10))
    left = progress_of(host.job, Attempt.objects.get()).seconds_left
    assert left == pytest.approx(30, rel=0.2)
    Round.objects.all().delete()  # as in a later attempt of the job, before its first rounds have come
    assert progress_of(host.job, Attempt.objects.get()).seconds_left is None


@pytest.mark.parametrize("part", ["rounds", "labels", "nodes", "state"])
def test_only_the_team_sees_it(host, owner, teammate, stranger, admin, part):
    host.post(host.simulator.pack(1, 1))
    url = reverse("job-part", args=[host.job.pk, part])
    people = [owner, teammate, stranger, None, admin]
    assert [browser_of(user).get(url).status_code for user in people] == [200, 200, 404, 302, 200]


def test_many_rounds_cost_no_more_queries(host, owner, django_assert_num_queries):
    browser = browser_of(owner)
    url = reverse("job-page", args=[host.job.pk])
    host.post(host.simulator.pack(1, 1, label_counts=[{"3": 5}] * 100))
    browser.get(url)
    with CaptureQueriesContext(connection) as few:
        browser.get(url)
    host.post(host.simulator.pack(2, 12))
    with django_assert_num_queries(len(few)):
        browser.get(url)
    # Opened, a round brings its clients along.
    opened = "&".join(f"open={pk}" for pk in Round.objects.values_list("pk", flat=True)[:5])
    rounds = reverse("job-part", args=[host.job.pk, "rounds"])
    with CaptureQueriesContext(connection) as closed:
        browser.get(rounds)
    with django_assert_num_queries(len(closed)):
        browser.get(f"{rounds}?{opened}")


def test_the_form_says_what_it_would_simulate(job):
    said = dict(summary(job.spec, BUILTIN_SOURCES["digits"], 2))
    assert said["Clients"] == "100 virtual clients on 1 node, 2 processes; 10 a round"
    assert not {"Quorum", "Traffic"} & set(said)
    spread = job.spec.model_copy(deep=True).model_dump(mode="json", exclude_none=True)
    spread["federated"]["clients"] |= {"num": 2, "processes": 1}
    said = dict(summary(JobSpec.model_validate(spread), BUILTIN_SOURCES["digits"], 2))
    assert said["Clients"] == "100 virtual clients on 2 nodes, 2 processes; 10 a round"


def test_what_is_typed_into_the_form_says_so_at_once(owner):
    values = {**typed("digits-simulation"), "federated.clients.simulate": "300", "federated.clients.processes": "1"}
    answer = browser_of(owner).post(reverse("job-check"), values)
    assert ("Clients", "300 virtual clients on 1 node, 1 process; 10 a round") in answer.context["summary"]
    answer = browser_of(owner).post(reverse("job-check"), {**values, "federated.clients.simulate": "1500"})
    assert "leaves 1438 training rows for 1,500 participants" in answer.content.decode()
    answer = browser_of(owner).post(reverse("job-new"), values)
    assert answer.status_code == 302
    clients = Job.objects.get().spec.federated.clients
    assert (clients.simulate, clients.processes, clients.num) == (300, 1, 1)


def test_a_clone_simulates_alike(job, owner):
    page = browser_of(owner).get(reverse("job-clone", args=[job.pk]), follow=True).content.decode()
    assert 'name="federated.clients.simulate"' in page
    assert 'value="100"' in page

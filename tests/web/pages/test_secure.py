"""What pages show of secure aggregation: the panel, a round's saturated counts, fingerprints, and the form's fields."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone

from tests.conftest import browser_of
from tests.web.pages.conftest import enrol, submit
from trainer.secure.keys import fingerprint
from trainer.secure.messages import MaskingTerms
from webapp.fleet.models import Node
from webapp.jobs.models import Assignment, Attempt, Job, Participation, Round
from webapp.jobs.secure_selectors import MaskedSum, secure_of
from webapp.jobs.templatetags.jobs_ui import small_share

KEYS = [b64encode(bytes([k]) * 32).decode() for k in range(4)]
FEDERATED = {"rounds": 5, "clients": {"num": 4}, "secure_aggregation": {"clip": 2.5}}


@pytest.fixture
def secure_job(team, owner) -> Job:
    return submit(team, owner, federated=FEDERATED)


@pytest.fixture
def summed(secure_job: Job, admin: User) -> Job:
    """A running job: of round 1's four clients three were summed; round 2 waits for shares."""
    secure_job.move_to(Job.State.RUNNING, "Started.", progress_done=1)
    attempt = Attempt.objects.create(job=secure_job, number=1, state=Attempt.State.RUNNING)
    facts = {"masking": MaskingTerms(threshold=3, num_clients=4, max_examples=100).model_dump()}
    common = {"attempt": attempt, "num_quorum": 3, "deadline_at": timezone.now(), "weights_digest": "a" * 64}
    closed = Round.objects.create(
        **common, number=1, state="closed", phase_at=timezone.now(), facts=facts | {"num_values": 1000}
    )
    Round.objects.create(**common, number=2, state="open", phase="shares", phase_at=timezone.now(), facts=facts)
    for index in range(4):
        node = enrol(f"node-{index}", admin)
        Node.objects.filter(pk=node.pk).update(facts_json=node.facts_json | {"public_key": KEYS[index]})
        assignment = Assignment.objects.create(attempt=attempt, node=node, index=index, slots=1, state="active")
        returned = index < 3
        Participation.objects.create(
            round=closed,
            assignment=assignment,
            state="returned" if returned else "lost",
            returned_at=timezone.now() if returned else None,
            num_saturated=(0, 2, 1)[index] if returned else None,
        )
    return secure_job


def part_of(job: Job, user: User, part: str, **query: Any) -> str:
    html = browser_of(user).get(reverse("job-part", args=[job.pk, part]), query).content.decode()
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def test_before_a_round_the_panel_says_what_is_planned(secure_job, owner):
    said = part_of(secure_job, owner, "secure")
    assert said.startswith("Needs 3 of 4 clients to unmask a sum; 1 may drop out Clip ±2.5 a parameter The server sees")
    assert "What stays visible of each client: its row counts, steps, losses" in said


def test_the_panel_says_how_far_the_round_is_and_what_the_last_one_summed(summed, owner):
    said = part_of(summed, owner, "secure")
    assert "Round 2 Sharing secrets since" in said
    assert "Summed 3 of 4 clients in round 1" in said
    assert "Saturated 0.10 % of the parameters in round 1 The server" in said


def test_much_saturation_warns(summed, owner):
    Participation.objects.filter(num_saturated=2).update(num_saturated=3)
    secure = secure_of(summed)
    assert secure.last == MaskedSum(1, 4, 3, 4 / 3000)
    said = part_of(summed, owner, "secure")
    assert "Saturated 0.13 % of the parameters in round 1 much Changes beyond the clip are cut" in said


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0 %"), (1e-9, "below 0.01 %"), (1e-4, "0.01 %"), (0.00125, "0.12 %"), (1, "100.00 %")]
)
def test_what_is_there_is_never_shown_as_nothing(part, text):
    assert small_share(part) == text


def test_queries(summed, job, django_assert_num_queries):
    with django_assert_num_queries(2):
        secure_of(summed)
    with django_assert_num_queries(0):
        assert secure_of(job) is None


def test_a_round_shows_what_was_cut_of_each_update(summed, owner):
    round_ = Round.objects.get(number=1)
    said = part_of(summed, owner, "rounds", open=round_.pk)
    assert "Saturated" in said
    assert "Saturated" not in part_of(submit(summed.team, owner), owner, "rounds")


def test_the_nodes_of_a_secure_job_show_their_fingerprints(summed, owner, ran):
    said = part_of(summed, owner, "nodes")
    assert all(fingerprint(key) in said for key in KEYS)
    Node.objects.filter(name="node-a").update(facts_json=Node.objects.get(name="node-0").facts_json)
    assert fingerprint(KEYS[0]) not in part_of(ran, owner, "nodes"), "of a plain job nobody asks"


def test_a_nodes_page_shows_its_fingerprint_to_copy(node, admin):
    browser = browser_of(admin)
    url = reverse("node-page", args=[node.pk])
    assert "Fingerprint" not in browser.get(url).content.decode()
    Node.objects.filter(pk=node.pk).update(facts_json=node.facts_json | {"public_key": KEYS[1]})
    page = browser.get(url).content.decode()
    assert fingerprint(KEYS[1]) in page
    assert 'data-copy="node-key"' in page


def test_who_may_not_see_the_job_sees_no_panel(summed, stranger):
    url = reverse("job-part", args=[summed.pk, "secure"])
    assert browser_of(stranger).get(url).status_code == 404
    assert browser_of(None).get(url).status_code == 302


def test_a_plain_jobs_page_has_no_panel(ran, summed, owner):
    browser = browser_of(owner)
    assert "Secure aggregation" not in browser.get(reverse("job-page", args=[ran.pk])).content.decode()
    assert 'id="part-secure"' in browser.get(reverse("job-page", args=[summed.pk])).content.decode()

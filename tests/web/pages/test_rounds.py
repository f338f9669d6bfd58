"""What the page says of a round's aggregation, and who holds which labels."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from tests.conftest import browser_of
from tests.web.pages.conftest import enrol, submit
from webapp.jobs.models import Assignment, Attempt, Participation, Round
from webapp.jobs.round_selectors import MOST_CLIENTS_DRAWN, MOST_LABELS_DRAWN, clients_of, labels_of


def part_of(job, user, part: str, query: str = "") -> str:
    return browser_of(user).get(reverse("job-part", args=[job.pk, part]) + query).content.decode()


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def change_spec(job, **federated) -> None:
    job.spec_json = {**job.spec_json, "federated": {**job.spec_json["federated"], **federated}}
    job.save(update_fields=["spec_json"])


@pytest.fixture
def round_(ran) -> Round:
    """A closed round of which both clients returned."""
    Participation.objects.update(state="returned", state_reason="")
    return Round.objects.get()


def save_facts(round_: Round, **facts) -> Round:
    round_.facts = facts
    round_.save(update_fields=["facts"])
    return round_


def test_weights_and_norms_stand_at_their_clients(round_, ran, owner):
    save_facts(round_, weights=[0.75, 0.25], norms=[1.5, 0.5])
    said = text_of(part_of(ran, owner, "rounds", f"?open={round_.pk}"))
    assert "0 node-a Returned 719 1.5 s 1.0 KiB / 2.0 KiB 75.0 % 1.5 0.25" in said
    assert "1 node-b Returned 0 0 ms 0 B / 0 B 25.0 % 0.5" in said


def test_facts_are_of_the_updates_that_were_summed(ran):
    # Client 0 was refused and client 1 returned: the one weight is client 1's.
    first, second = Participation.objects.order_by("assignment__index")
    Participation.objects.filter(pk=first.pk).update(state="refused")
    Participation.objects.filter(pk=second.pk).update(state="returned")
    rows = clients_of(save_facts(Round.objects.get(), weights=[1.0], norms=[2.0]), ran)
    assert [(row.weight, row.norm) for row in rows] == [(None, None), (1.0, 2.0)]


def test_whose_update_was_cut_or_thrown_away_is_said(round_, ran, owner):
    change_spec(ran, aggregator={"name": "norm_bound", "max_norm": 1.0})
    save_facts(round_, norms=[1.5, 1.0], num_clipped=1, left_out=[1])
    ran.refresh_from_db()
    assert [(row.is_clipped, row.is_left_out) for row in clients_of(round_, ran)] == [(True, False), (False, True)]
    said = text_of(part_of(ran, owner, "rounds", f"?open={round_.pk}"))
    assert "2 / 2 1 left out 1 clipped" in said
    assert "node-a Returned clipped" in said
    assert "node-b Returned left out" in said


def test_a_closed_round_still_says_which_label_was_rare(round_, ran, owner):
    sentence = "Of its clients too few carry a label: it draws 0 of 1 with the label &#x27;north&#x27;."
    save_facts(round_, label_shortage=sentence.replace("&#x27;", "'"))
    assert sentence in part_of(ran, owner, "rounds", f"?open={round_.pk}")
    assert sentence not in part_of(ran, owner, "rounds")


def test_a_round_without_facts_has_no_columns_for_them(round_, ran, owner):
    said = text_of(part_of(ran, owner, "rounds", f"?open={round_.pk}"))
    assert "Weight" not in said
    assert "Norm" not in said
    assert "Epsilon" not in said


def test_a_private_job_says_what_is_spent(round_, ran, owner):
    change_spec(ran, privacy={"noise_multiplier": 1.0})
    save_facts(round_, clip_norm=0.5, noise_std=0.25, epsilon=1.25, norms=[0.75, 0.25], num_clipped=1)
    said = text_of(part_of(ran, owner, "rounds", f"?open={round_.pk}"))
    assert "Epsilon" in said
    assert "0.25 0.875 1.25" in said
    assert "cut to the norm 0.5; the noise on each weight of their mean has a standard deviation of 0.25." in said
    assert "node-a Returned clipped" in said


def test_an_open_round_says_what_it_waits_for(round_, ran, owner):
    now = timezone.now()
    Round.objects.update(state="open", closed_at=None, deadline_at=now + timedelta(minutes=10, seconds=5))
    asked = Participation.objects.get(assignment__index=1)
    Participation.objects.filter(pk=asked.pk).update(
        state="asked", returned_at=None, progress_at=now - timedelta(seconds=7)
    )
    said = text_of(part_of(ran, owner, "rounds", f"?open={round_.pk}"))
    assert "Needs 1 of 2 updates, and closes without the others in 10 min" in said
    assert re.search(r"node-b Asked came further 7(\.\d)? s ago", said), "a busy machine draws it a little later"


def test_every_label_has_its_column_and_each_client_its_counts(ran, owner):
    said = text_of(part_of(ran, owner, "labels"))
    assert "Client Node Labels Rows 0 1 2 3 4 5 6 7 8 9 0 node-a" in said
    assert "719 0 0 19 0 0 0 0 0 0 700 1 node-b – – –" in said


def test_labels_of_a_nodes_own_data_stand_in_the_order_of_their_numbers(ran):
    ran.spec_json = {**ran.spec_json, "data": {"source": "ward-7"}}
    Participation.objects.update(label_counts={"10": 1, "9": 2, "stage 11": 3, "stage 2": 4})
    picture = labels_of(ran, ran.attempts.get())
    assert picture.labels == ("9", "10", "stage 2", "stage 11")
    assert picture.rows[0].counts == (2, 1, 4, 3)


def test_bars_are_as_long_as_the_rows_are_many(ran):
    other = Participation.objects.get(assignment__index=1)
    other.label_counts = {"2": 1438}
    other.save(update_fields=["label_counts"])
    small, large = labels_of(ran, ran.attempts.get()).rows
    assert [(bar.label, bar.start, bar.length) for bar in large.bars] == [("2", 0.0, 100.0)]
    assert [bar.length for bar in small.bars] == pytest.approx([100 * 19 / 1438, 100 * 700 / 1438])
    assert small.bars[1].start == small.bars[0].length
    assert small.total == 719
    assert [bar.shade for bar in small.bars] == [2, 9]


def test_the_newest_counts_of_a_client_hold(ran):
    attempt, first = ran.attempts.get(), Participation.objects.get(assignment__index=0)
    later = Round.objects.create(attempt=attempt, number=2, num_quorum=1, deadline_at=ran.created_at)
    Participation.objects.create(round=later, assignment=first.assignment, label_counts={"0": 5})
    assert labels_of(ran, attempt).rows[0].counts == (5, *[0] * 9)


def test_a_later_attempt_begins_with_what_its_nodes_have_said(ran, admin):
    first = ran.attempts.get()
    first.move_to("failed")
    later = Attempt.objects.create(job=ran, number=2, state="running")
    assert [row.counts for row in labels_of(ran, later).rows] == [None, None]
    same = first.assignments.get(index=0).node
    Assignment.objects.create(attempt=later, node=same, index=0, slots=1, state="active")
    assert labels_of(ran, later).rows[0].total == 719
    # On another node the client may have other rows.
    later.assignments.update(node=enrol("node-c", admin))
    assert labels_of(ran, later).rows[0].counts is None


def test_room_is_kept_while_nobody_has_said(job, owner):
    assert "Rows 0 1 2 3 4 5 6 7 8 9 0 – – –" in text_of(part_of(job, owner, "labels"))
    assert [row.counts for row in labels_of(job, None).rows] == [None, None]


def test_of_very_many_clients_the_first_are_drawn(team, owner):
    job = submit(team, owner, federated={"clients": {"num": 120}})
    picture = labels_of(job, None)
    assert (len(picture.rows), picture.num_more) == (MOST_CLIENTS_DRAWN, 70)


@pytest.mark.parametrize("preset", ["diabetes-regression", "digits-distributed"])
def test_what_has_no_labels_or_no_clients_has_no_picture(preset, team, owner):
    job = submit(team, owner, preset)
    page = browser_of(owner).get(reverse("job-page", args=[job.pk])).content.decode()
    assert "part-labels" not in page


def test_of_very_many_labels_the_most_frequent_have_columns(ran, owner):
    ran.spec_json = {**ran.spec_json, "data": {"source": "ward-7"}}
    ran.save(update_fields=["spec_json"])
    first, second = Participation.objects.order_by("assignment__index")
    first.label_counts = {str(number): number for number in range(1, 1201)}
    second.label_counts = {"3": 9000, "4": 1}
    for row in (first, second):
        row.save(update_fields=["label_counts"])
    picture = labels_of(ran, ran.attempts.get())
    assert picture.labels == ("3", *map(str, range(1172, 1201)), "1,170 others")
    assert len(picture.labels) == MOST_LABELS_DRAWN + 1
    assert picture.rows[0].counts == (3, *range(1172, 1201), sum(range(1, 1172)) - 3)
    assert picture.rows[1].counts == (9000, *[0] * 29, 1)
    assert [row.total for row in picture.rows] == [sum(range(1, 1201)), 9001]
    last = picture.rows[0].bars[-1]
    assert (last.label, last.start + last.length) == ("1,170 others", pytest.approx(100))
    assert "1,200 1,170 others" in text_of(part_of(ran, owner, "labels"))


@pytest.mark.parametrize("num_more", [0, 1])
def test_as_many_labels_as_there_are_columns_have_one_each(ran, num_more):
    ran.spec_json = {**ran.spec_json, "data": {"source": "ward-7"}}
    Participation.objects.update(label_counts={str(number): 1 for number in range(MOST_LABELS_DRAWN + num_more)})
    picture = labels_of(ran, ran.attempts.get())
    assert picture.labels == (*map(str, range(MOST_LABELS_DRAWN)), *["1 other"] * num_more)
    assert picture.rows[0].counts == (1,) * (MOST_LABELS_DRAWN + num_more)


def test_any_class_name_may_stand_in_the_order(ran):
    ran.spec_json = {**ran.spec_json, "data": {"source": "ward-7"}}
    names = ["5²", "²", "5", "٣", "10", "9" * 5000, ""]
    Participation.objects.update(label_counts=dict.fromkeys(names, 1))
    assert labels_of(ran, ran.attempts.get()).labels == ("", "٣", "5", "5²", "10", "9" * 5000, "²")

"""FedBuff and the server's own data on the pages: what a round counted, who still trains, and what the form offers."""

from __future__ import annotations

import pytest
from django.utils import timezone

from tests.conftest import browser_of
from tests.web.pages.test_rounds import change_spec, part_of, text_of
from webapp.jobs.form_values import values_of
from webapp.jobs.models import Participation, Round
from webapp.jobs.presets import PRESETS
from webapp.jobs.round_selectors import clients_of, ledger_of


@pytest.fixture
def buffered(ran) -> Round:
    """Two rounds. The first counted node-a's update; the second is open and has node-b's of round 1 in its buffer."""
    change_spec(ran, strategy={"name": "fedbuff", "buffer": 2})
    first = Round.objects.get()
    fields = {"weights_digest": "b" * 64, "num_quorum": 1, "deadline_at": timezone.now(), "state": "open"}
    second = Round.objects.create(attempt=first.attempt, number=2, **fields)
    fast, slow = Participation.objects.order_by("assignment__index")
    Participation.objects.filter(pk=fast.pk).update(counted_in=first)
    returned = {
        "state": "returned",
        "state_reason": "",
        "num_examples": 81,
        "size_bytes": 5,
        "returned_at": timezone.now(),
    }
    Participation.objects.filter(pk=slow.pk).update(counted_in=second, **returned)
    Participation.objects.create(round=second, assignment=fast.assignment, state="asked")
    return second


def test_a_round_shows_what_its_buffer_counted(buffered, ran, owner):
    second, first = ledger_of(ran)
    assert (first.num_returned, first.num_stale, first.num_asked, first.num_examples) == (1, 0, 2, 719)
    assert (second.num_returned, second.num_stale, second.num_asked, second.num_examples) == (1, 1, 1, 81)
    said = text_of(part_of(ran, owner, "rounds"))
    assert "1 / 2 1 from earlier rounds 81" in said
    assert "still training" not in said


def test_the_clients_of_a_round_say_where_their_updates_come_from_and_went(buffered, ran, owner):
    first = Round.objects.get(number=1)
    first.facts = buffered.facts = {"weights": [1.0], "norms": [0.5]}
    first.save()
    buffered.save()
    rows = [
        (r.participation.assignment.node.name, r.participation.round.number, r.weight)
        for r in clients_of(buffered, ran)
    ]
    assert rows == [("node-a", 2, None), ("node-b", 1, 1.0)]
    assert [r.weight for r in clients_of(first, ran)] == [1.0, None]
    said = text_of(part_of(ran, owner, "rounds", f"?open={first.pk}&open={buffered.pk}"))
    assert "Returned from round 1" in said
    assert "Returned counted in round 2" in said
    assert "Closes as soon as 2 updates are in, from whichever weights;" in said


def test_who_still_trains_from_a_closed_round_is_shown_there(buffered, ran, owner):
    Round.objects.filter(number=2).update(state="closed")
    said = text_of(part_of(ran, owner, "rounds", f"?open={buffered.pk}"))
    assert "1 / 2 1 from earlier rounds 1 still training" in said
    assert "Asked still training" in said


def test_the_api_says_which_round_counted_an_update(buffered, ran, owner):
    items = browser_of(owner).get(f"/api/v1/jobs/{ran.pk}/rounds").json()["items"]
    assert [[p["counted_in"] for p in item["participations"]] for item in items] == [[1, 2], [None]]


def form_of(owner, **values: str) -> str:
    whole = values_of(PRESETS["digits-federated"].spec) | values
    return browser_of(owner).post("/jobs/new/check/", whole).content.decode()


def test_the_form_offers_the_clients_own_data_set_and_what_the_server_declares(owner, team, settings, tmp_path):
    settings.DATA_FILE = tmp_path / "data.toml"
    (tmp_path / "held-out.csv").write_text("a,ill\n1,0\n2,1\n")
    settings.DATA_FILE.write_text(
        '[[sources]]\nname = "held-out"\npath = "held-out.csv"\nlabel = "ill"\ntask = "classification"\n'
    )
    page = form_of(owner)
    assert '<option value="digits" selected>digits · its test rows</option>' in page
    assert '<option value="held-out">held-out · 2 rows</option>' in page
    assert "The server measures" in text_of(page)
    assert "another built-in data set" in form_of(owner, **{"data.source": "breast_cancer"})


def test_the_summary_says_what_makes_a_round(owner, team):
    page = text_of(form_of(owner, **{"federated.strategy.name": "fedbuff", "federated.strategy:fedbuff.buffer": "2"}))
    assert "Buffer 2 updates make a round; at its deadline 1 is enough" in page

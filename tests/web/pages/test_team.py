from __future__ import annotations

import re

import pytest
from django.urls import reverse

from tests.conftest import browser_of
from webapp.teams.models import ApiToken, Membership


@pytest.fixture
def maintainer(team, owner):
    team.memberships.filter(user=owner).update(role="maintainer")
    return owner


def url(name: str, team, user=None) -> str:
    return reverse(name, args=[team.slug, user.pk] if user else [team.slug])


def test_a_maintainer_adds_a_member_by_name(maintainer, team, stranger):
    browser_of(maintainer).post(url("member-add", team), {"username": " stranger ", "role": "viewer"})
    assert Membership.objects.get(team=team, user=stranger).role == "viewer"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"username": "who", "role": "member"}, "There is no user &#x27;who&#x27;"),
        ({"username": "teammate", "role": "member"}, "is in Cardiology already"),
        ({"username": "stranger", "role": "king"}, "There is no role &#x27;king&#x27;"),
    ],
)
def test_what_cannot_be_is_said(data, sentence, maintainer, team, teammate, stranger):
    answer = browser_of(maintainer).post(url("member-add", team), data, follow=True)
    assert sentence in answer.content.decode()


def test_change_a_role_and_remove(maintainer, team, teammate):
    browser = browser_of(maintainer)
    browser.post(url("member-role", team, teammate), {"role": "viewer"})
    assert Membership.objects.get(team=team, user=teammate).role == "viewer"
    browser.post(url("member-remove", team, teammate))
    assert not Membership.objects.filter(team=team, user=teammate).exists()


def test_who_is_in_no_team_is_told_whom_to_ask(stranger):
    stranger.memberships.all().delete()
    assert "You are in no team yet" in browser_of(stranger).get("/team/").content.decode()


def test_a_token_is_shown_this_once(owner):
    browser = browser_of(owner)
    answer = browser.post(reverse("token-create"), {"name": "laptop"})
    secret = re.search(r"tma_[\w-]{20,}", answer.content.decode())
    assert secret
    assert answer["Cache-Control"] == "no-store"
    assert secret.group() not in browser.get("/team/").content.decode()


def test_a_token_needs_a_name(owner):
    answer = browser_of(owner).post(reverse("token-create"), {"name": " "}, follow=True)
    assert "1 to 80 printable characters" in answer.content.decode()
    assert not ApiToken.objects.exists()


def test_a_revoked_token_leaves_the_list(owner):
    browser = browser_of(owner)
    browser.post(reverse("token-create"), {"name": "laptop"})
    browser.post(reverse("token-revoke", args=[ApiToken.objects.get().pk]))
    assert ApiToken.objects.get().revoked_at
    assert list(browser.get("/team/").context["tokens"]) == []

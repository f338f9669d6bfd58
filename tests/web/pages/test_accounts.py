from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from tests.conftest import browser_of
from webapp.core.models import AuditEntry
from webapp.teams.models import Membership, Team


def create(browser, team, username="new", role="member"):
    return browser.post(reverse("account-create", args=[team.slug]), {"username": username, "role": role}, follow=True)


def test_an_administrator_creates_an_account_and_its_person_signs_in(admin, team):
    answer = create(browser_of(admin), team)
    shown = re.search(r'id="new-password"[^>]*>([^<]+)<', answer.content.decode())
    assert shown
    assert answer["Cache-Control"] == "no-store"
    browser = browser_of(None)
    browser.post(reverse("sign-in"), {"username": "new", "password": shown.group(1)})
    assert browser.get(reverse("job-list")).status_code == 200
    assert Membership.objects.get(team=team, user__username="new").role == "member"
    assert shown.group(1) not in str(list(AuditEntry.objects.values()))


@pytest.mark.parametrize(
    ("username", "role", "sentence"),
    [
        ("owner", "member", "already exists"),
        ("", "member", "cannot be blank"),
        ("a b", "member", "valid username"),
        ("new", "king", "There is no role"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(username, role, sentence, admin, owner, team):
    before = User.objects.count()
    assert sentence in create(browser_of(admin), team, username, role).content.decode()
    assert User.objects.count() == before


def test_an_administrator_creates_a_team(admin):
    answer = browser_of(admin).post(reverse("team-create"), {"name": "Radiology"}, follow=True)
    assert answer.context["team"] == Team.objects.get(slug="radiology")


def test_a_taken_team_name_is_said(admin, team):
    answer = browser_of(admin).post(reverse("team-create"), {"name": team.name}, follow=True)
    assert "There is a team" in answer.content.decode()


def test_a_person_changes_the_own_password(owner):
    browser = browser_of(owner)
    words = {"old_password": "correct horse", "new_password1": "battery staple 9", "new_password2": "battery staple 9"}
    assert browser.post(reverse("password-change"), words | {"old_password": "wrong"}).status_code == 200
    assert browser.post(reverse("password-change"), words).status_code == 302
    owner.refresh_from_db()
    assert owner.check_password("battery staple 9")
    assert browser.get(reverse("job-list")).status_code == 200

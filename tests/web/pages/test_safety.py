"""What holds on every page: no inline code, no foreign host, no act without the form's token, no secret in the admin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from tests.conftest import browser_of

TEMPLATES = sorted(Path(settings.BASE_DIR, "templates").rglob("*.html"))


def test_every_page_has_our_icon(admin):
    browser = browser_of(admin)
    for url in ("/jobs/", "/admin/"):
        assert 'rel="icon" href="/static/img/logo.svg"' in browser.get(url).content.decode()
    assert browser.get("/favicon.ico")["Location"] == "/static/img/logo.svg"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.name))
def test_no_template_holds_code_or_style_that_the_policy_would_block(path):
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"\son[a-z]+=|\shx-on|\sstyle=|<style|javascript:", text)
    assert "|safe" not in text


def test_pages_carry_the_policy(owner):
    policy = browser_of(owner).get("/jobs/")["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_an_act_without_the_forms_token_is_refused(owner, job):
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    answer = client.post(f"/jobs/{job.pk}/cancel/")
    assert answer.status_code == 403
    assert "Send it again" in answer.content.decode()


def test_sign_in_says_what_is_wrong_and_keeps_the_name(owner):
    page = Client().post("/sign-in/", {"username": "owner", "password": "wrong"}).content.decode()
    assert "do not belong together" in page
    assert 'value="owner"' in page


def test_sign_in_leads_back_to_where_one_wanted_to_go_and_nowhere_else(owner):
    right = {"username": "owner", "password": "correct horse"}
    assert Client().post("/sign-in/", {**right, "next": "/team/"})["Location"] == "/team/"
    assert Client().post("/sign-in/", {**right, "next": "https://evil.example/"})["Location"] == "/jobs/"


def test_a_missing_page_is_drawn_for_everyone(owner):
    for user in (owner, None):
        answer = browser_of(user).get("/no-such-page/")
        assert answer.status_code == 404
        assert "Nothing here" in answer.content.decode()


@pytest.mark.parametrize(
    "page", ["fleet/node", "fleet/enrolmenttoken", "teams/apitoken", "jobs/job", "core/transition", "core/auditentry"]
)
def test_the_django_admin_shows_and_changes_nothing(page, ran, node, admin):
    browser = browser_of(admin)
    assert browser.get(f"/admin/{page}/").status_code == 200
    assert browser.get(f"/admin/{page}/add/").status_code == 403


def test_the_django_admin_shows_no_hash_of_a_secret(node, admin):
    page = browser_of(admin).get(f"/admin/fleet/node/{node.pk}/change/").content.decode()
    assert node.name in page
    assert node.secret_hash not in page

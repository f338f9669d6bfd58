from __future__ import annotations

import re

from django.urls import reverse

from tests.conftest import browser_of
from tests.web.pages.conftest import enrol
from webapp.fleet.models import EnrolmentToken, Node


def test_an_empty_list_says_what_to_do(admin):
    page = browser_of(admin).get("/nodes/").content.decode()
    assert "No node yet" in page
    assert reverse("node-add") in page


def test_the_command_is_shown_this_once(admin, settings):
    settings.PUBLIC_URL = "https://train.example.org"
    answer = browser_of(admin).post("/nodes/add/", {"preapproved": "1"})
    command = re.search(r"trainmaster node join (\S+) --token (tmj_[\w-]+)", answer.content.decode())
    assert command
    assert command.group(1) == "https://train.example.org"
    assert answer["Cache-Control"] == "no-store"
    token = EnrolmentToken.objects.get()
    assert token.preapproved
    assert token.hash != command.group(2)
    assert "tmj_" not in browser_of(admin).get("/nodes/add/").content.decode()


def test_the_page_sees_the_node_arrive_and_offers_to_approve(admin):
    node = enrol("gpu-7", admin)
    url = reverse("node-arrival", args=[EnrolmentToken.objects.get(node=node).pk])
    page = browser_of(admin).get(url).content.decode()
    assert "gpu-7" in page
    assert reverse("node-approve", args=[node.pk]) in page


def test_approve(node, admin):
    answer = browser_of(admin).post(reverse("node-approve", args=[node.pk]), follow=True)
    node.refresh_from_db()
    assert node.state == Node.State.OFFLINE
    assert "gpu-1 is let in" in answer.content.decode()


def test_refuse(node, admin):
    browser_of(admin).post(reverse("node-refuse", args=[node.pk]))
    node.refresh_from_db()
    assert node.state == Node.State.REVOKED


def test_revoke_asks_first_and_a_second_time_it_says_why_not(admin):
    node = enrol("gpu-2", admin, preapproved=True)
    browser = browser_of(admin)
    assert "What it runs now is lost" in browser.get(reverse("node-page", args=[node.pk])).content.decode()
    browser.post(reverse("node-revoke", args=[node.pk]))
    node.refresh_from_db()
    assert node.state == Node.State.REVOKED
    again = browser.post(reverse("node-revoke", args=[node.pk]), follow=True).content.decode()
    assert 'class="toast-note error"' in again


def test_the_page_shows_facts_and_what_runs_there(ran, admin):
    node = Node.objects.get(name="node-a")
    page = browser_of(admin).get(reverse("node-page", args=[node.pk])).content.decode()
    assert "node-a.example.org" in page
    assert "32.0 GiB" in page
    assert ran.name in page


def test_the_number_of_queries_does_not_grow_with_nodes(admin, django_assert_num_queries):
    for number in range(12):
        enrol(f"node-{number}", admin)
    browser = browser_of(admin)
    # session, user, nodes, what runs on them
    with django_assert_num_queries(4):
        browser.get("/nodes/")


def test_data_shows_schema_and_counts_only(owner):
    page = browser_of(owner).get("/data/").content.decode()
    assert "breast_cancer" in page
    assert "1,797" in page

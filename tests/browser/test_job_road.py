"""The road of the product, in a browser: define a job in the form, watch its curves move, cancel it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.realstack import Stack, digits

pytestmark = [pytest.mark.browser, pytest.mark.stack]


def test_define_watch_and_cancel(page: Page, stack: Stack):
    page.goto("/jobs/")
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Name", exact=True).fill("Made in the browser")
    page.get_by_role("textbox", name="Rounds", exact=True).fill("2000")
    # The summary is the server's answer to what was typed.
    expect(page.get_by_text("2,000 × 1 local epoch")).to_be_visible()
    page.get_by_role("button", name="Run the job").click()

    page.wait_for_url(re.compile(r"/jobs/\d+/$"))
    page.evaluate("window.neverReloaded = true")
    chart = page.locator("figure.chart[data-metric='train/loss']")
    latest = chart.locator("tr[data-source='aggregate'] td")
    expect(latest).to_have_text(re.compile(r"\d"), timeout=60_000)
    before = latest.inner_text()
    expect(latest).not_to_have_text(before, timeout=30_000)
    expect(page.locator(".title-row .state")).to_have_text("Running")
    expect(page.locator("#part-rounds tbody").first).to_contain_text(re.compile("Open|Aggregating|Closed"))
    expect(page.locator("[data-live-mark]")).to_have_text("Live")

    page.get_by_role("button", name="Cancel", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("The round that is under way is lost")
    assert page.evaluate("window.neverReloaded") is True
    dialog.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".title-row .state")).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()


def test_a_finished_job_shows_its_labels_and_trains_on(page: Page, stack: Stack):
    spec = digits(rounds=2, strategy={"name": "fedprox"}, encoding={"name": "int8"}) | {"name": "Trains on"}
    job_id = stack.submit({**spec, "data": {"source": "digits", "partition": {"scheme": "shards"}}})
    page.goto(f"/jobs/{job_id}/")
    state = page.locator(".title-row .state")
    expect(state).to_have_text("Finished", timeout=60_000)
    expect(page.locator(".job-facts")).to_contain_text("FedProx")

    # 1,438 training rows, every one of them counted once, at the client that has it.
    rows = page.locator("#part-labels tbody tr")
    expect(rows).to_have_count(2)
    totals = [int(text.replace(",", "")) for text in rows.locator("td:nth-child(4)").all_inner_texts()]
    assert sum(totals) == 1438

    page.locator("#part-rounds [data-open-round]").first.click()
    clients = page.locator("#part-rounds table.clients")
    expect(clients).to_contain_text("Weight")
    shares = [float(text.removesuffix(" %")) for text in clients.locator("td:nth-child(7)").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)

    page.get_by_role("button", name="More rounds").click()
    page.get_by_label("Rounds to add").fill("2")
    page.get_by_role("dialog").get_by_role("button", name="Train on").click()
    expect(page.locator(".meter-value").first).to_have_text("4 / 4", timeout=60_000)
    expect(state).to_have_text("Finished", timeout=60_000)


def test_a_round_opened_while_an_answer_is_on_its_way_stays_open(page: Page, stack: Stack):
    job_id = stack.submit(digits(rounds=1) | {"name": "Opened early"})
    page.goto(f"/jobs/{job_id}/")
    expect(page.locator(".title-row .state")).to_have_text("Finished", timeout=60_000)
    expect(page.locator("[data-live-mark]")).to_have_text("Ended")
    page.wait_for_load_state("networkidle")

    held: list[Route] = []
    page.route(re.compile("/parts/rounds/"), lambda route: held.append(route) if not held else route.continue_())
    with page.expect_request(re.compile("/parts/rounds/")):
        page.evaluate("htmx.trigger('#part-rounds', 'refresh')")
    page.locator("#part-rounds [data-open-round]").click()
    held[0].continue_()
    expect(page.locator("#part-rounds table.clients")).to_contain_text("Weight")


def test_the_list_follows_without_a_reload(page: Page, stack: Stack):
    page.goto("/jobs/")
    expect(page.locator("[data-live-mark]")).to_have_text("Live")
    page.evaluate("window.neverReloaded = true")
    made = stack.api.post("/jobs", json={**digits(rounds=3), "name": "Made elsewhere"}).json()
    row = page.locator(f"#job-{made['id']}")
    expect(row).to_contain_text("Made elsewhere", timeout=15_000)
    expect(row.locator(".state")).to_have_text("Finished", timeout=60_000)
    expect(row).to_contain_text("3 / 3")
    assert page.evaluate("window.neverReloaded") is True


def test_a_double_click_makes_one_job(page: Page, stack: Stack):
    page.goto("/jobs/new/?preset=digits-federated")
    page.get_by_label("Name", exact=True).fill("Clicked twice")
    page.get_by_role("textbox", name="Rounds", exact=True).fill("1")
    page.get_by_role("button", name="Run the job").dblclick()
    page.wait_for_url(re.compile(r"/jobs/\d+/$"))
    page.goto("/jobs/?q=Clicked+twice")
    expect(page.locator("#job-list tbody tr")).to_have_count(1)

"""The fixtures themselves: a real page, signed in, on the real stack."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.realstack import Stack, digits


def test_the_first_page_lists_the_jobs(page: Page, stack: Stack):
    job_id = stack.submit(digits(rounds=2))
    page.goto("/jobs/")
    expect(page.get_by_role("link", name="digits federated").first).to_be_visible()
    stack.wait_state(job_id, "finished")


def test_a_running_job_shows_its_curves(page: Page, stack: Stack):
    job_id = stack.submit(digits(rounds=1000))
    page.goto(f"/jobs/{job_id}/")
    expect(page.locator("#charts canvas").first).to_be_visible(timeout=30_000)

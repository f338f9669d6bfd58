from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Response, Route, expect

pytestmark = [pytest.mark.browser, pytest.mark.stack]


def test_errors_come_while_one_types_and_focus_stays(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    rate = page.get_by_label("Learning rate", exact=True)
    rate.fill("-1")
    rate.press("Tab")
    expect(page.locator("#f-training-optimizer-sgd-lr-error")).to_contain_text("above 0")
    expect(rate).to_have_value("-1")
    expect(page.get_by_label("Momentum", exact=True)).to_be_focused()
    rate.fill("0.1")
    expect(page.locator("#f-training-optimizer-sgd-lr-error")).to_have_count(0)


def test_a_refused_form_goes_on_at_the_first_wrong_field(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    page.get_by_label("Learning rate", exact=True).fill("-1")
    page.wait_for_timeout(800)

    def is_expected(response: Response) -> bool:
        return response.request.method == "POST" and response.url.endswith("/jobs/new/")

    with page.expect_response(is_expected):
        page.get_by_role("button", name="Run the job").click()
    expect(page.get_by_label("Learning rate", exact=True)).to_be_focused()


def test_what_is_typed_while_the_answer_is_under_way_is_kept(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    name = page.get_by_label("Name", exact=True)
    name.fill("")
    name.press_sequentially("Typed slowly, over several answers", delay=60)
    page.wait_for_timeout(1200)
    expect(name).to_have_value("Typed slowly, over several answers")
    expect(page.locator("#spec-yaml")).to_contain_text("name: Typed slowly, over several answers")


def test_only_what_applies_is_shown_and_comes_back(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    page.get_by_label("Hidden layers").fill("64, 32")
    page.locator("#f-model-name").select_option("cnn")
    expect(page.get_by_label("Channels")).to_be_visible()
    expect(page.get_by_label("Hidden layers")).to_have_count(0)
    page.locator("#f-model-name").select_option("mlp")
    expect(page.get_by_label("Hidden layers")).to_have_value("64, 32")
    page.get_by_text("Distributed", exact=True).click()
    expect(page.get_by_label("Processes per node")).to_be_visible()
    expect(page.get_by_label("Number of nodes")).to_have_count(0)


def test_an_answer_to_older_text_is_not_drawn_over_newer(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    name = page.get_by_label("Name", exact=True)

    def answer_late(route: Route) -> None:
        late = route.fetch()
        name.press_sequentially(" and more")
        route.fulfill(response=late)

    page.route("**/jobs/new/check/", answer_late, times=1)
    name.fill("First")
    expect(page.locator("#spec-yaml")).to_contain_text("name: First and more")
    expect(name).to_have_value("First and more")


def test_switches_open_sections_and_the_side_says_what_they_cost(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    privacy, yaml = page.get_by_role("switch", name="Central differential privacy"), page.locator("#spec-yaml")
    privacy.check()
    page.get_by_label("Noise multiplier").fill("2")
    # Answered and drawn: what is typed next is not typed into an older answer's page.
    expect(yaml).to_contain_text("noise_multiplier: 2.0")
    expect(page.locator("aside").get_by_text(re.compile("after round 20")).first).to_be_visible()
    page.get_by_role("switch", name="Early stop").check()
    expect(page.get_by_label("Patience")).to_have_value("5")
    page.get_by_label("Patience").fill("3")
    expect(yaml).to_contain_text("patience: 3")
    privacy.uncheck()
    expect(page.get_by_label("Noise multiplier")).to_have_count(0)
    privacy.check()
    expect(page.get_by_label("Noise multiplier")).to_have_value("2")


def test_a_simulation_is_switched_on(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    page.get_by_role("switch", name="Simulation").check()
    expect(page.get_by_label("Simulated clients")).to_have_value("100")
    expect(page.locator("#spec-yaml")).to_contain_text("simulate: 100")
    page.get_by_role("switch", name="Simulation").uncheck()
    expect(page.get_by_label("Simulated clients")).to_have_count(0)
    expect(page.locator("#spec-yaml")).not_to_contain_text("simulate")


def test_a_combination_is_checked_and_called_by_its_name(page: Page):
    page.goto("/jobs/new/?preset=digits-federated")
    page.locator("#f-federated-strategy-name").select_option("fedprox")
    page.locator("#f-federated-server_optimizer-name").select_option("adam")
    expect(page.get_by_text("FedProx with FedAdam")).to_be_visible()
    page.locator("#f-federated-aggregator-name").select_option("krum")
    expect(page.locator("#f-federated-aggregator-krum-attackers-error")).to_contain_text("lower “Attackers”")
    page.get_by_label("Number of nodes").fill("5")
    expect(page.get_by_text("FedProx with FedAdam, Krum")).to_be_visible()

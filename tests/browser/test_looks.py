"""Every page, in both themes, wide and narrow: nothing overflows, nothing jumps, and axe finds nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.realstack import ROOT, Stack, digits

pytestmark = [pytest.mark.browser, pytest.mark.stack]

AXE = (ROOT / "node_modules" / "axe-core" / "axe.min.js").read_text()
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}"
SHIFTS = """
window.shifts = [];
const tell = ({node, previousRect, currentRect}) =>
  `${node?.id || node?.className || node?.nodeName} ${previousRect.y}+${previousRect.height} > ${currentRect.y}+${currentRect.height}`;
const keep = (list) => list.getEntries().forEach((s) => window.shifts.push([s.value, ...s.sources.map(tell)]));
new PerformanceObserver(keep).observe({type: "layout-shift", buffered: true});
"""
PAGES = ("/jobs/", "/jobs/new/", "/jobs/{job}/", "/nodes/", "/nodes/add/", "/nodes/{node}/", "/data/", "/team/")


@pytest.fixture
def job(stack: Stack) -> int:
    """One of the first run's own jobs."""
    return int(stack.items("/jobs")[-1]["id"])


@pytest.fixture
def node(stack: Stack) -> str:
    return str(next(iter(stack.nodes().values()))["id"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pages_fit_and_read_well(page: Page, stack: Stack, job: int, node: str, theme: str, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)
    found: list[str] = []
    for path in PAGES:
        url = path.format(job=job, node=node)
        page.goto(url)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.dataset.bsTheme") == theme
        overflow = page.evaluate("document.documentElement.scrollWidth") - width
        if overflow > 0:
            found.append(f"{url} is {overflow} px too wide")
        page.evaluate(AXE)
        for finding in page.evaluate(f"axe.run(document, {RULES})")["violations"]:
            found += [f"{url} {finding['id']}: {place['html'][:200]} {place['any'][:1]}" for place in finding["nodes"]]
    assert not found, "\n".join(found)


def assert_still(page: Page) -> None:
    """Cumulative layout shift below 0.1, where web.dev calls it good: all shifts since the page began are summed."""
    shifts = page.evaluate("window.shifts")
    assert sum(value for value, *_ in shifts) < 0.1, (page.url, [shift for shift in shifts if shift[0] > 0.001])


def test_nothing_jumps_while_a_page_fills(page: Page, job: int):
    page.add_init_script(SHIFTS)
    for path in ("/jobs/", f"/jobs/{job}/", "/jobs/new/"):
        page.goto(path)
        page.wait_for_timeout(1500)
        assert_still(page)


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("mode", ["federated", "distributed"])
def test_nothing_jumps_while_a_job_starts(page: Page, stack: Stack, mode: str, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    page.add_init_script(SHIFTS)
    length = {"rounds": 15} if mode == "federated" else {"epochs": 15}
    page.goto(f"/jobs/{stack.submit(digits(mode, **length))}/")
    expect(page.locator("figure.chart canvas")).to_have_count(6 if mode == "federated" else 4, timeout=60_000)
    page.wait_for_timeout(1000)
    assert_still(page)


def test_the_chosen_theme_outlives_the_page(page: Page):
    page.emulate_media(color_scheme="light")
    page.goto("/jobs/")
    page.get_by_role("button", name="Dark").click()
    page.goto("/team/")
    assert page.evaluate("document.documentElement.dataset.bsTheme") == "dark"
    page.get_by_role("button", name="As the system").click()
    assert page.evaluate("document.documentElement.dataset.bsTheme") == "light"


def test_by_keyboard_alone(page: Page):
    page.goto("/jobs/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="New job")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/new/")


def test_the_menu_of_a_small_screen(page: Page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto("/jobs/")
    expect(page.get_by_role("link", name="Data")).not_to_be_visible()
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Data").click()
    page.wait_for_url("**/data/")


def test_add_a_node_copies_a_command(page: Page, stack: Stack):
    page.goto("/nodes/add/")
    page.get_by_role("button", name="Make the command").click()
    expect(page.locator("#join-command")).to_contain_text(f"trainmaster node join {stack.url} --token tmj_")
    expect(page.locator("#arrival")).to_contain_text("Waiting for the machine")

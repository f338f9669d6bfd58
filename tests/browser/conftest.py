"""A real Chromium on the real stack, signed in as the administrator. A page that logs an error fails its test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.realstack import ROOT, Stack

expect.set_options(timeout=20_000)  # 5 s are not enough for an answer of the server's where every core is busy
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"]


def find_chromium() -> str:
    """The machine's Chromium, else the one that the npm package @sparticuz/chromium carries."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    node = shutil.which("node") or str(ROOT / ".venv" / "bin" / "node")
    script = "import('@sparticuz/chromium').then(m => m.default.executablePath()).then(p => console.log(p))"
    answer = subprocess.run(
        [node, "--eval", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    path = answer.stdout.strip()
    if answer.returncode or not Path(path).is_file():
        pytest.skip(f"There is no Chromium, and @sparticuz/chromium does not unpack: {answer.stderr[-500:]}")
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Of one module: Playwright keeps an event loop running, beside which no asynchronous test of the process can."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, stack: Stack) -> Iterator[Page]:
    """A page at 1440x900, signed in as `admin`; its console must stay free of errors."""
    context = chromium.new_context(base_url=stack.url, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # Chromium calls every answer above 399 an error; to a wrong form 422 is the right one.
        if message.type == "error" and "status of 422" not in message.text:
            errors.append(f"{message.text} ({message.location.get('url', '')})")

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/sign-in")
    page.get_by_label("User name").fill("admin")
    page.get_by_label("Password").fill(stack.admin_password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs/**")
    yield page
    context.close()
    assert errors == []

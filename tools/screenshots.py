"""Make the README's pictures of a job's page, light and dark, from a running stack.

    .venv/bin/python tools/screenshots.py http://127.0.0.1:8000 --job 1

The password of `admin` is read from TRAINMASTER_ADMIN_PASSWORD, or from where `make up` keeps it. The pictures are
docs/img/job-light.png and docs/img/job-dark.png, 1440 pixels wide, and the same at 390 pixels with `-narrow`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Error, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "img"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"": 1440, "-narrow": 390}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's pictures from a running stack.")
    parser.add_argument("url", help="the stack's address")
    parser.add_argument("--job", type=int, default=1, help="number of the job to show (default: 1)")
    options = parser.parse_args()
    password = find_password()
    TARGET.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        executable = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            for theme in ("light", "dark"):
                for suffix, width in WIDTHS.items():
                    take(
                        browser,
                        options.url.rstrip("/"),
                        options.job,
                        password,
                        theme,
                        width,
                        f"job-{theme}{suffix}.png",
                    )
        except Error as error:
            sys.exit(f"The page did not come as expected: {error.message}")
        finally:
            browser.close()


def find_password() -> str:
    kept = Path(os.environ.get("TRAINMASTER_HOME", ROOT / "var")) / "secrets" / "admin-password"
    if password := os.environ.get("TRAINMASTER_ADMIN_PASSWORD"):
        return password
    if kept.is_file():
        return kept.read_text().strip()
    sys.exit(f"Set TRAINMASTER_ADMIN_PASSWORD, or TRAINMASTER_HOME: there is no {kept}.")


def take(browser: Browser, url: str, job: int, password: str, theme: str, width: int, name: str) -> None:
    """Sign in, wait until the curves are drawn, and save one picture."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, device_scale_factor=2 if width < 500 else 1
    )
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    page.locator("[name=username]").fill("admin")
    page.locator("[name=password]").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs/")
    page.goto(f"{url}/jobs/{job}/")
    page.wait_for_selector("#charts canvas")
    page.wait_for_selector("#charts .is-skeleton", state="detached")
    page.screenshot(path=TARGET / name)
    context.close()
    print(TARGET.relative_to(ROOT) / name)


if __name__ == "__main__":
    main()

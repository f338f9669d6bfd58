"""Wait until the stack answers, submit the demo jobs on the first run, and print where to go."""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.stack.demo import submit_demo_jobs
from webapp.stack.first_run import ADMIN
from webapp.stack.home import Home

PATIENCE_SECONDS = 60.0


class Command(BaseCommand):
    help = "Greet whoever ran 'make up': started by the supervisor, once."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("url", help="where this machine reaches the web server")

    def handle(self, url: str, **options: Any) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._wait_until_healthy(url)
        submitted = submit_demo_jobs()
        home = Home(settings.HOME)
        self.stdout.write(f"Trainmaster is ready: {settings.PUBLIC_URL}")
        if submitted:
            password = home.admin_password.read_text().strip()
            self.stdout.write(f"Sign in as {ADMIN} with the password {password}  (kept in {home.admin_password})")
            names = " and ".join(f"'{job.name}'" for job in submitted)
            self.stdout.write(f"Two jobs train already, so that there is something to see: {names}.")
        self.stdout.write(f"Logs are in {home.logs}. Ctrl-C stops everything; the next start goes on from here.")

    def _wait_until_healthy(self, url: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        answer = "no answer"
        while time.monotonic() < deadline:
            try:
                response = httpx.get(f"{url}/healthz", timeout=5, trust_env=False)
                if response.status_code == 200:
                    return
                answer = response.text[:500]
            except httpx.TransportError as error:
                answer = str(error)
            time.sleep(0.1)
        logs = Home(settings.HOME).logs
        raise CommandError(
            f"The web server is not healthy after {PATIENCE_SECONDS:.0f} s ({answer}): look into {logs}."
        )

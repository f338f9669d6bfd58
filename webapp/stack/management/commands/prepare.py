"""Bring the database and the static files up to date; on the first run make the administrator and print the password."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from webapp.stack.first_run import ADMIN, prepare
from webapp.stack.home import Home, StartError, prepare_home


class Command(BaseCommand):
    help = __doc__
    requires_system_checks: list[str] = []

    def handle(self, **options: Any) -> None:
        try:
            home: Home = prepare_home(settings.HOME)
            created = prepare(home)
        except StartError as error:
            raise CommandError(str(error)) from error
        if created:
            password = home.admin_password.read_text().strip()
            self.stdout.write(f"Sign in as {ADMIN} with the password {password}  (kept in {home.admin_password})")

"""`manage.py createtoken USERNAME`: print a new API token of a user, and nothing else."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandParser

from webapp.core.errors import Refusal
from webapp.teams.services import create_api_token


class Command(BaseCommand):
    help = "Print a new API token of a user, and nothing else. It is shown this once."
    # What the checks say would mix with the token.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--name", default="createtoken", help="What the token is for (default: createtoken).")

    def handle(self, *, username: str, name: str, **options: Any) -> None:
        user = User.objects.filter(username=username, is_active=True).first()
        if user is None:
            self._fail(f"There is no active user '{username}': check the spelling, or create the user first.")
        try:
            _, token = create_api_token(user=user, name=name)
        except Refusal as refusal:
            self._fail(refusal.sentence)
        self.stdout.write(token)

    def _fail(self, sentence: str) -> NoReturn:
        self.stderr.write(sentence)
        sys.exit(1)

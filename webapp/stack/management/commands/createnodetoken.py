"""Print a one-time token by which one node may join, already approved, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.fleet import services
from webapp.stack.first_run import administrator
from webapp.stack.home import StartError


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--hours", type=float, default=1.0, help="how long it may be used (default: 1)")

    def handle(self, hours: float, **options: Any) -> None:
        try:
            actor = administrator()
        except StartError as error:
            raise CommandError(str(error)) from error
        _, token = services.create_enrolment_token(actor=actor, preapproved=True, ttl=timedelta(hours=hours))
        self.stdout.write(token)

"""manage.py ingest: drain the nodes' telemetry streams into the database and out to the browsers."""

from __future__ import annotations

import signal
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection

from webapp.ingest.loop import Ingest


class Command(BaseCommand):
    help = "Drain the nodes' telemetry streams into the database and out to the browsers, until SIGTERM."

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor == "sqlite":
            # Wait for another writer in short steps, with an ear for SIGTERM between them.
            connection.settings_dict["OPTIONS"]["timeout"] = 1
        ingest = Ingest()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ingest.stop())
        ingest.run()

"""What is asked of the conductor survives clocks that differ between hosts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from webapp.celery import app
from webapp.core.conductor import ask_conductor


def test_a_request_never_expires(broker):
    ask_conductor("webapp.jobs.tasks.advance_attempt", 7)
    (raw,) = broker.lrange("conductor", 0, -1)
    headers = json.loads(raw)["headers"]
    assert (headers["task"], headers["argsrepr"], headers["expires"]) == (
        "webapp.jobs.tasks.advance_attempt",
        "(7,)",
        None,
    )


def test_each_sweep_allows_clocks_that_differ_by_minutes(broker, settings):
    for entry in app.conf.beat_schedule.values():
        with app.connection_for_write(settings.BROKER_URL) as connection:
            app.send_task(entry["task"], connection=connection, **entry["options"])
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    sweeps = [json.loads(raw)["headers"] for raw in broker.lrange("conductor", 0, -1)]
    assert len(sweeps) == len(app.conf.beat_schedule) == 5
    assert all(datetime.fromisoformat(sweep["expires"]) > ahead for sweep in sweeps)

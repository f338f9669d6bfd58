"""The two jobs of the first run: long enough that a newcomer's first page shows curves that move."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import transaction

from trainer.spec import JobSpec
from webapp.jobs.models import Job
from webapp.stack.first_run import ADMIN, TEAM
from webapp.teams.models import Team

DEMO_SPECS: tuple[dict[str, object], ...] = (
    {
        "name": "Digits, federated",
        "mode": "federated",
        "model": {"name": "mlp", "options": {"hidden": [200, 200]}},
        "data": {"source": "digits", "partition": {"scheme": "dirichlet", "alpha": 0.5}},
        "training": {"optimizer": {"name": "sgd", "lr": 0.05}, "batch_size": 16},
        "federated": {"rounds": 300, "local_epochs": 1, "server_data": "digits"},
    },
    {
        "name": "Digits, distributed",
        "mode": "distributed",
        "model": {"name": "cnn"},
        "data": {"source": "digits"},
        "training": {"optimizer": {"name": "adamw", "lr": 0.0005}, "batch_size": 32},
        "distributed": {"nodes": 2, "epochs": 100},
    },
)


def submit_demo_jobs() -> list[Job]:
    """Submit the demo jobs into an empty database, both or none; return them, or an empty list when jobs exist."""
    from webapp.jobs import services

    admin = User.objects.filter(username=ADMIN).first()
    team = Team.objects.filter(name=TEAM).first()
    if admin is None or team is None or Job.objects.exists():
        return []
    with transaction.atomic():
        return [services.submit_job(team=team, owner=admin, spec=JobSpec.model_validate(spec)) for spec in DEMO_SPECS]

"""What kind of job a row is, without building its spec: reports and pages ask often."""

from __future__ import annotations

from webapp.jobs.models import Job


def is_simulated(job: Job) -> bool:
    """Whether it is a federated job whose clients are virtual (`JobSpec.is_simulated`)."""
    clients = (job.spec_json.get("federated") or {}).get("clients") or {}
    return clients.get("simulate") is not None


def runs_ranks(job: Job) -> bool:
    """Whether its nodes run ranks, and not one client each."""
    return job.mode == "distributed" or is_simulated(job)

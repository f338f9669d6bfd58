"""The motor: look at the rows, do the next thing that is due. Anyone may call it, at any time, as often as they like."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta

from django.db import InterfaceError, OperationalError
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from webapp.blobs import services as blobs
from webapp.fleet.models import Node
from webapp.jobs.attempts import end_attempt, release_assignments, stop_leftovers
from webapp.jobs.distributed import advance_distributed, record_epochs
from webapp.jobs.federated import MODEL_NAME, advance_federated, send_model
from webapp.jobs.kinds import is_simulated
from webapp.jobs.models import Artifact, Assignment, Attempt
from webapp.jobs.scheduling import schedule_jobs
from webapp.jobs.simulation import advance_simulation

logger = logging.getLogger(__name__)

KEEP_AGAIN_AFTER = timedelta(minutes=1)
KEEP_FOR = timedelta(days=7)
"""How long a node that was away at the end may come back and still be told to keep the final model."""
MAX_FAILURES = 5
"""Sweeps in a row that may break on an attempt before it is failed: one may only have met another worker's next step."""

_failures: Counter[int] = Counter()
"""Sweeps in a row that broke on an attempt, in this process."""


def advance_attempt(*, attempt_id: int) -> None:
    """Do what is due for an attempt. Harmless for one that is unknown or has nothing to do."""
    attempt = Attempt.objects.select_related("job").filter(pk=attempt_id).first()
    if attempt is None:
        return
    if attempt.state != Attempt.State.RUNNING:
        release_assignments(attempt)
    elif is_simulated(attempt.job):
        advance_simulation(attempt)
    elif attempt.job.mode == "federated":
        advance_federated(attempt)
    else:
        advance_distributed(attempt)


def sweep_jobs() -> None:
    """Mend what lost messages and dead workers left behind: called every 2 s. Idle, it costs four small queries."""
    held = Assignment.objects.filter(attempt=OuterRef("pk")).exclude(state=Assignment.State.RELEASED)
    due = Attempt.objects.filter(Q(state=Attempt.State.RUNNING) | Exists(held)).select_related("job").order_by("pk")
    attempts = list(due)
    for attempt in attempts:
        _advance_safely(attempt)
    training = [a for a in attempts if a.state == Attempt.State.RUNNING and a.job.mode == "distributed"]
    if training:
        record_epochs(training)
    stop_leftovers()
    _offer_models()
    schedule_jobs()


def _advance_safely(attempt: Attempt) -> None:
    """Advance an attempt. One that breaks must not stop the others, and must not hang for ever."""
    try:
        advance_attempt(attempt_id=attempt.pk)
    except (OperationalError, InterfaceError):
        raise  # the database is locked or away: not this attempt's fault
    except Exception as error:
        logger.exception("%s cannot go on", attempt)
        _failures[attempt.pk] += 1
        if _failures[attempt.pk] < MAX_FAILURES or attempt.state != Attempt.State.RUNNING:
            return
        reason = (
            f"The server could not go on with this job ({type(error).__name__}): its log tells an administrator why."
        )
        end_attempt(attempt=attempt, state=Attempt.State.FAILED, reason=reason)
    _failures.pop(attempt.pk, None)


def _offer_models() -> None:
    """Tell nodes that were away, or whose message was lost, to keep the final model of their federated jobs."""
    now = timezone.now()
    # A job that was given more rounds has a newer model: the old one must not come after it.
    newer = Attempt.objects.filter(job=OuterRef("attempt__job"), number__gt=OuterRef("attempt__number"))
    waiting = Assignment.objects.filter(
        ~Exists(newer),
        model_sent_at__lt=now - KEEP_AGAIN_AFTER,
        attempt__state=Attempt.State.FINISHED,
        attempt__ended_at__gt=now - KEEP_FOR,
        attempt__job__mode="federated",
        model_kept_at=None,
        node__state=Node.State.ONLINE,
    )
    for artifact in Artifact.objects.filter(name=MODEL_NAME, attempt__in=waiting.values("attempt")).select_related(
        "attempt"
    ):
        if blobs.exists(artifact.digest):
            send_model(artifact.attempt, blobs.ref_of(artifact.digest))

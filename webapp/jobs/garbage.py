"""Blobs that nobody needs: the updates of closed rounds, the weights that they started from, and what was never offered.

A blob's name is its content, and two jobs with one seed make equal bytes. So a blob goes only when no row needs it, and the
check and the deletion exclude whoever begins to need it: on SQLite by the one writer at a time, on PostgreSQL by a lock on
the digest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q

from webapp.blobs import services as blobs
from webapp.jobs.models import Artifact, Attempt, Participation, Round

KEEP_SECONDS = 24 * 3600
"""How long a blob may lie before a row needs it: its node offers it right after the upload."""

_BUFFERED = Q(
    round__attempt__state=Attempt.State.RUNNING, round__attempt__job__spec_json__federated__strategy__name="fedbuff"
)
"""Participations of running FedBuff attempts: clients train from the weights of closed rounds, and an update that came while a
round was being closed waits for the next one."""


def hold(digest: str) -> bool:
    """Keep `digest` from being deleted until the transaction ends. Return whether its blob is there.

    Call it in the transaction that writes the digest into a row.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int(digest[:15], 16)])
    return blobs.exists(digest)


def hold_all(digests: Iterable[str]) -> bool:
    """Hold each of `digests`. Return whether all of their blobs are there. Taken in one order, so that two never wait for each other."""
    return all(hold(digest) for digest in sorted(set(digests)))


def delete_on_commit(digests: Iterable[str]) -> None:
    """After the commit, delete those of `digests` that nothing needs."""
    wanted = sorted(set(digests))
    transaction.on_commit(lambda: _delete(wanted), robust=True)


def _delete(digests: list[str]) -> None:
    for digest in digests:
        with transaction.atomic():
            hold(digest)
            if not is_needed(digest):
                blobs.delete(digest)


def sweep_blobs() -> int:
    """Delete blobs that no row has needed for a day, such as an upload whose node went before it offered it. Returns how many."""
    old = [digest for digest in blobs.stored_before(time.time() - KEEP_SECONDS) if not is_needed(digest)]
    _delete(old)
    return len(old)


def is_needed(digest: str) -> bool:
    """Whether a job may still read the blob: to train, to aggregate, to go on from, or to download.

    A job goes on from its newest attempt, which began with what the one before had.
    """
    newer = Attempt.objects.filter(job=OuterRef("job"), number__gt=OuterRef("number"))
    return (
        Attempt.objects.filter(~Exists(newer), Q(weights_digest=digest) | Q(memory_digest=digest))
        .values("pk")
        .union(
            Round.objects.filter(Q(weights_digest=digest) | Q(memory_digest=digest), state__in=Round.UNDER_WAY).values(
                "pk"
            ),
            Participation.objects.filter(
                Q(round__state__in=Round.UNDER_WAY)
                | Q(counted_in__state__in=Round.UNDER_WAY)
                | Q(_BUFFERED, counted_in=None),
                update_digest=digest,
                state=Participation.State.RETURNED,
            ).values("pk"),
            Round.objects.filter(
                Exists(Participation.objects.filter(_BUFFERED, round=OuterRef("pk"), state__in=Participation.OUT)),
                weights_digest=digest,
            ).values("pk"),
            Artifact.objects.filter(digest=digest).values("pk"),
            all=True,
        )
        .exists()
    )

"""Which blobs a node needs, and so may read."""

from __future__ import annotations

from webapp.fleet.models import Node
from webapp.jobs.models import Artifact, Assignment, Attempt, Round


def node_may_read_blob(node: Node, digest: str) -> bool:
    """Whether the blob is the present weights, an open round's weights, or an artifact of an attempt that the node is or was in."""
    assignments = Assignment.objects.filter(node=node)
    held = assignments.exclude(state=Assignment.State.RELEASED)
    return (
        Round.objects.filter(
            attempt__in=held.values("attempt"),
            state__in=Round.UNDER_WAY,
            weights_digest=digest,
        )
        .values("pk")
        .union(
            Attempt.objects.filter(pk__in=assignments.values("attempt"), weights_digest=digest).values("pk"),
            Artifact.objects.filter(attempt__in=assignments.values("attempt"), digest=digest).values("pk"),
            all=True,
        )
        .exists()
    )

"""Which blobs a node needs, and so may read."""

from __future__ import annotations

from webapp.fleet.models import Node
from webapp.jobs.models import Artifact, Assignment, Attempt, Round


def node_may_read_blob(node: Node, digest: str) -> bool:
    """Whether the blob is the present weights, an open round's weights, or an artifact of an attempt that the node is or was in.

    What a strategy remembers is the server's own, but for the variate that the clients of a SCAFFOLD round need.
    """
    assignments = Assignment.objects.filter(node=node)
    held = assignments.exclude(state=Assignment.State.RELEASED)
    under_way = Round.objects.filter(attempt__in=held.values("attempt"), state__in=Round.UNDER_WAY)
    return (
        under_way.filter(weights_digest=digest)
        .values("pk")
        .union(
            under_way.filter(
                memory_digest=digest, attempt__job__spec_json__federated__strategy__name="scaffold"
            ).values("pk"),
            Attempt.objects.filter(pk__in=assignments.values("attempt"), weights_digest=digest).values("pk"),
            Artifact.objects.filter(attempt__in=assignments.values("attempt"), digest=digest).values("pk"),
            all=True,
        )
        .exists()
    )

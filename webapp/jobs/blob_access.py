"""Which blobs a node needs, and so may read."""

from __future__ import annotations

from django.db.models import Q

from webapp.fleet.models import Node
from webapp.jobs.models import Artifact, Assignment, Attempt, Participation, Round


def node_may_read_blob(node: Node, digest: str) -> bool:
    """Whether the blob is the present weights, an open round's weights, or an artifact of an attempt that the node is or was in.

    What a strategy remembers is the server's own, but for the variate that the clients of a SCAFFOLD round need.
    """
    assignments = Assignment.objects.filter(node=node)
    held = assignments.exclude(state=Assignment.State.RELEASED)
    under_way = Round.objects.filter(attempt__in=held.values("attempt"), state__in=Round.UNDER_WAY)
    # Under FedBuff a client may still train from the weights of a round that has closed.
    at_work = Participation.objects.filter(
        assignment__in=held, state__in=Participation.OUT, round__weights_digest=digest
    )
    return (
        under_way.filter(weights_digest=digest)
        .values("pk")
        .union(
            under_way.filter(
                memory_digest=digest, attempt__job__spec_json__federated__strategy__name="scaffold"
            ).values("pk"),
            Attempt.objects.filter(pk__in=assignments.values("attempt"), weights_digest=digest).values("pk"),
            # The ranks of a simulation take the server's step themselves, and go on from its memory.
            Attempt.objects.filter(
                ~Q(job__spec_json__federated__clients__simulate=None),  # null, as a spec of real nodes says
                job__spec_json__federated__clients__has_key="simulate",
                pk__in=held.values("attempt"),
                memory_digest=digest,
            ).values("pk"),
            Artifact.objects.filter(attempt__in=assignments.values("attempt"), digest=digest).values("pk"),
            at_work.values("pk"),
            all=True,
        )
        .exists()
    )

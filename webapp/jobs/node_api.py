"""What nodes deliver and ask over HTTP, under /node/v1. `request.auth` is the node."""

from __future__ import annotations

from ninja import Router, Status

from trainer.protocol import ArtifactOffer, Rendezvous, UpdateOffer, Verdict
from webapp.core.errors import Refusal
from webapp.fleet.auth import NodeRequest
from webapp.jobs import door, services

router = Router(tags=["jobs"])


@router.post("/attempts/{attempt_id}/rounds/{round_number}/update", response=Verdict)
def offer_update(request: NodeRequest, attempt_id: int, round_number: int, offer: UpdateOffer) -> Verdict:
    return services.accept_update(node=request.auth, attempt_id=attempt_id, round_number=round_number, offer=offer)


@router.post("/attempts/{attempt_id}/artifacts", response=Verdict)
def offer_artifact(request: NodeRequest, attempt_id: int, offer: ArtifactOffer) -> Verdict:
    return services.accept_artifact(node=request.auth, attempt_id=attempt_id, offer=offer)


@router.put("/attempts/{attempt_id}/rendezvous", response={204: None})
def put_rendezvous(request: NodeRequest, attempt_id: int, rendezvous: Rendezvous) -> Status[None]:
    services.announce_rendezvous(node=request.auth, attempt_id=attempt_id, rendezvous=rendezvous)
    return Status(204, None)


@router.get("/attempts/{attempt_id}/rendezvous", response=Rendezvous)
def get_rendezvous(request: NodeRequest, attempt_id: int) -> Rendezvous:
    rendezvous = door.read_rendezvous(node=request.auth, attempt_id=attempt_id)
    if rendezvous is None:
        raise Refusal("No rendezvous of this attempt is known yet: ask again in a moment.", status=404)
    return rendezvous

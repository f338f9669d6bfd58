"""What nodes deliver and ask over HTTP, under /node/v1. `request.auth` is the node."""

from __future__ import annotations

from ninja import Router, Status

from trainer.protocol import ArtifactOffer, Rendezvous, UpdateOffer, Verdict
from trainer.secure.messages import PublicKeys, SealedShares, Unmasking
from trainer.simulation.messages import SimulatedRounds
from webapp.core.errors import Refusal
from webapp.fleet.auth import NodeRequest
from webapp.jobs import door, services

router = Router(tags=["jobs"])


@router.post("/attempts/{attempt_id}/rounds/{round_number}/update", response=Verdict)
def offer_update(request: NodeRequest, attempt_id: int, round_number: int, offer: UpdateOffer) -> Verdict:
    return services.accept_update(node=request.auth, attempt_id=attempt_id, round_number=round_number, offer=offer)


@router.post("/attempts/{attempt_id}/simulated", response=Verdict)
def offer_simulated(request: NodeRequest, attempt_id: int, offer: SimulatedRounds) -> Verdict:
    return services.record_simulated(node=request.auth, attempt_id=attempt_id, offer=offer)


@router.post("/attempts/{attempt_id}/rounds/{round_number}/keys", response=Verdict)
def post_keys(request: NodeRequest, attempt_id: int, round_number: int, posted: PublicKeys) -> Verdict:
    # Not called `keys`: ninja takes what has such an attribute for a dictionary.
    return services.accept_keys(node=request.auth, attempt_id=attempt_id, round_number=round_number, keys=posted)


@router.post("/attempts/{attempt_id}/rounds/{round_number}/shares", response=Verdict)
def post_shares(request: NodeRequest, attempt_id: int, round_number: int, shares: SealedShares) -> Verdict:
    return services.accept_shares(node=request.auth, attempt_id=attempt_id, round_number=round_number, shares=shares)


@router.post("/attempts/{attempt_id}/rounds/{round_number}/unmasking", response=Verdict)
def post_unmasking(request: NodeRequest, attempt_id: int, round_number: int, unmasking: Unmasking) -> Verdict:
    return services.accept_unmasking(
        node=request.auth, attempt_id=attempt_id, round_number=round_number, unmasking=unmasking
    )


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

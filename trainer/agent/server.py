"""The server's HTTP interface, as a node uses it. Errors are `ServerRefusal` with the server's own sentence."""

from __future__ import annotations

import os
import ssl
from typing import TypeVar

import httpx
from pydantic import BaseModel

from trainer.agent.home import AgentError
from trainer.protocol import ArtifactOffer, EnrolRequest, EnrolResponse, NodeStatus, Rendezvous, UpdateOffer, Verdict
from trainer.secure.messages import PublicKeys, SealedShares, Unmasking
from trainer.simulation.messages import SimulatedRounds

Answer = TypeVar("Answer", bound=BaseModel)


class ServerRefusal(Exception):
    """The server answered, and said no. Asking again would give the same answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ServerUnavailable(Exception):
    """The server is there but cannot answer now (5xx). Worth asking again."""


# What proves nothing about the request itself: ask again.
PASSING = (httpx.TransportError, ServerUnavailable)


def check(response: httpx.Response) -> httpx.Response:
    """Return the response when it is a success. Raises ServerUnavailable (5xx, 429) or ServerRefusal (other errors)."""
    if response.is_success:
        return response
    try:
        body = response.json()
        sentence = body.get("detail") if isinstance(body, dict) else None
    except ValueError:
        sentence = None
    sentence = sentence if isinstance(sentence, str) else f"The server answered {response.status_code}."
    # 507: its disk is full, which passes when someone makes room, but not by itself within this request's patience.
    if response.status_code == 429 or (response.status_code >= 500 and response.status_code != 507):
        raise ServerUnavailable(sentence)
    raise ServerRefusal(response.status_code, sentence)


def tls_context() -> ssl.SSLContext:
    """Return the certificates to trust: those of TRAINMASTER_CA_FILE where it is set, else the machine's."""
    file = os.environ.get("TRAINMASTER_CA_FILE") or None
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise AgentError(f"TRAINMASTER_CA_FILE={file} cannot be used: {error}.") from None


class Server:
    """One server, seen from a node. Safe to use from many threads."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.http = httpx.Client(
            base_url=f"{self.url}/node/v1/",
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            verify=tls_context(),
            timeout=httpx.Timeout(30, connect=5),
            limits=httpx.Limits(max_keepalive_connections=20, keepalive_expiry=60),
        )

    def _ask(self, answer: type[Answer], method: str, path: str, body: BaseModel | None = None) -> Answer:
        content = body.model_dump_json() if body else None
        headers = {"Content-Type": "application/json"} if body else {}
        response = check(self.http.request(method, path, content=content, headers=headers))
        return answer.model_validate_json(response.content)

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        return self._ask(EnrolResponse, "POST", "enrol", request)

    def me(self) -> NodeStatus:
        return self._ask(NodeStatus, "GET", "me")

    def offer_update(self, attempt_id: int, round_number: int, offer: UpdateOffer) -> Verdict:
        return self._ask(Verdict, "POST", f"attempts/{attempt_id}/rounds/{round_number}/update", offer)

    def post_simulated(self, attempt_id: int, rounds: SimulatedRounds) -> Verdict:
        return self._ask(Verdict, "POST", f"attempts/{attempt_id}/simulated", rounds)

    def post_keys(self, attempt_id: int, round_number: int, keys: PublicKeys) -> Verdict:
        return self._ask(Verdict, "POST", f"attempts/{attempt_id}/rounds/{round_number}/keys", keys)

    def post_shares(self, attempt_id: int, round_number: int, shares: SealedShares) -> Verdict:
        return self._ask(Verdict, "POST", f"attempts/{attempt_id}/rounds/{round_number}/shares", shares)

    def post_unmasking(self, attempt_id: int, round_number: int, unmasking: Unmasking) -> Verdict:
        return self._ask(Verdict, "POST", f"attempts/{attempt_id}/rounds/{round_number}/unmasking", unmasking)

    def offer_artifact(self, attempt_id: int, offer: ArtifactOffer) -> Verdict:
        return self._ask(Verdict, "POST", f"attempts/{attempt_id}/artifacts", offer)

    def announce_rendezvous(self, attempt_id: int, rendezvous: Rendezvous) -> None:
        path = f"attempts/{attempt_id}/rendezvous"
        check(self.http.put(path, content=rendezvous.model_dump_json(), headers={"Content-Type": "application/json"}))

    def find_rendezvous(self, attempt_id: int) -> Rendezvous | None:
        """Return where the ranks meet, or None while group rank 0 has not said."""
        try:
            return self._ask(Rendezvous, "GET", f"attempts/{attempt_id}/rendezvous")
        except ServerRefusal as refusal:
            if refusal.status == 404:
                return None
            raise

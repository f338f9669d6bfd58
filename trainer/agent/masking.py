"""This node's part in securely aggregated rounds: what it posts, what it is told, and the masks on its update.

A round's thread trains and then waits here until it knows whom to mask with; the server's other tasks come in threads of
their own. All secrets lie in memory: an agent that starts anew is out of the round, and takes part in the next.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trainer.agent.blobs import patiently
from trainer.agent.home import AgentError
from trainer.agent.pins import Pins
from trainer.agent.server import Server, ServerRefusal
from trainer.message import Message
from trainer.protocol import LogLine, Logs, RunReport, TrainRound, Verdict
from trainer.secure.agreed import terms_digest, threshold_of
from trainer.secure.keys import BadKeys
from trainer.secure.messages import MaskingTerms, MaskUpdate, ShareKeys, UnmaskRound
from trainer.secure.quantise import Quantiser
from trainer.secure.session import MaskingSession, NotSafe
from trainer.secure.weigh import factor_of, privacy_factor
from trainer.weights import map_weights, write_weights

logger = logging.getLogger(__name__)


class LeftOut(Exception):
    """The round goes on without this client; the server knows. The message is a sentence."""


class CannotMask(Exception):
    """This update cannot be masked; the message is a sentence."""


class MaskedRound:
    """One round of one client. Its session is used by one thread at a time."""

    def __init__(self, message: TrainRound, terms: MaskingTerms, session: MaskingSession, server: Server) -> None:
        self.attempt_id, self.number = message.attempt_id, message.round
        self.session = session
        self.lock = threading.Lock()
        self._spec, self._terms, self._client = message.spec, terms, message.client
        self._server = server
        self._over = threading.Event()  # nothing is waited for any more: a newer round, a stop, or a refusal
        self._changed = threading.Event()  # told, or over
        self._is_told = False

    def post_keys(self) -> None:
        """Raises LeftOut where the server has gone on without them."""
        with self.lock:
            keys = self.session.public_keys()
        self.post(lambda: self._server.post_keys(self.attempt_id, self.number, keys))

    def post(self, call: Callable[[], Verdict]) -> None:
        """Post, again and again while the server is out of reach and the round is not over. Raises LeftOut."""
        try:
            verdict = patiently(call, self._over)
        except ServerRefusal as refusal:
            verdict = Verdict(accepted=False, reason=str(refusal))
        if not verdict.accepted:
            self.end()
            raise LeftOut(f"Round {self.number} goes on without this client: {verdict.reason}")

    def tell(self) -> None:
        """The clients to mask with are known."""
        self._is_told = True
        self._changed.set()

    def end(self) -> None:
        """Let nobody wait for this round any more. What has left masked may still be unmasked."""
        self._over.set()
        self._changed.set()

    def mask(self, update: Path, *, num_examples: int, num_steps: int) -> int:
        """Wait until the server has told whom to mask with, then put the masked update in the file's place.

        Returns how many parameters were cut to the clip. Raises LeftOut where that time does not come, CannotMask, and NotSafe.
        Memory: as much as the update.
        """
        federated = self._spec.federated
        assert federated is not None
        assert federated.secure_aggregation is not None
        # After twice its deadline the server has closed the round, whatever became of its message.
        self._changed.wait(2 * federated.round_deadline_seconds)
        if self._over.is_set() or not self._is_told:
            raise LeftOut(f"Round {self.number} goes on without this client.")
        quantiser = Quantiser(self._terms, federated.secure_aggregation.clip)
        tensors = map_weights(update)
        said = {"num_examples": num_examples, "num_steps": num_steps}
        try:
            factor = factor_of(self._spec, self._terms, client=self._client, **said)
            if federated.privacy:
                factor *= privacy_factor(tensors, federated.privacy, quantiser)
            masked, num_saturated = quantiser.encode(tensors, factor)
        except ValueError as error:
            raise CannotMask(str(error)) from error
        with self.lock:
            self.session.mask(masked)
        write_weights(update, masked)
        return num_saturated


class Maskings:
    """The newest masked round of each attempt on this node. Safe to use from many threads."""

    def __init__(
        self,
        signing_key: Ed25519PrivateKey,
        *,
        node_id: str,
        name: str,
        pins: Pins,
        server: Server,
        tell: Callable[[Message], None],
    ) -> None:
        """`tell` queues a report or a log for the server."""
        self._signing_key, self._node_id, self._name = signing_key, node_id, name
        self._pins, self._server, self._tell = pins, server, tell
        self._rounds: dict[int, MaskedRound] = {}
        self._lock = threading.Lock()

    def has_begun(self, message: TrainRound) -> bool:
        """Whether this round, or a later one, has begun here with masks. It does not begin twice: its masks hide one update only."""
        known = self._rounds.get(message.attempt_id)
        return known is not None and known.number >= message.round

    def begin(self, message: TrainRound) -> MaskedRound | None:
        """Post fresh keys for a round, and return what masks its update; None for a job without secure aggregation.

        Raises NotSafe where a job with it comes without masks, or with a lower threshold than it asks for, LeftOut, and what
        `patiently` gives up with.
        """
        federated = message.spec.federated
        if federated is None or federated.secure_aggregation is None:
            return None
        if message.masking is None:
            raise NotSafe(
                f"The job asks for secure aggregation, and the server wants the update of round {message.round} of {self._name} without "
                "masks: update the server."
            )
        terms = message.masking
        least = threshold_of(federated.secure_aggregation.threshold, terms.num_clients)
        if terms.threshold < least:
            raise NotSafe(
                f"The server wants {terms.threshold} of {terms.num_clients} clients to unmask round {message.round}, and by "
                f"`federated.secure_aggregation.threshold` of the job it must be {least}: update the server."
            )
        session = MaskingSession(
            self._signing_key,
            node_id=self._node_id,
            node=self._name,
            attempt_id=message.attempt_id,
            round=message.round,
            client=message.client,
            terms=terms,
            terms_digest=terms_digest(
                message.spec,
                terms,
                weights=message.weights.digest,
                memory=message.memory.digest if message.memory else "",
            ),
        )
        masked = MaskedRound(message, terms, session, self._server)
        with self._lock:
            if self.has_begun(message):
                raise LeftOut(f"Round {message.round} has begun here before.")
            # Before the keys are posted: the server's next task may be here before its answer.
            old, self._rounds[message.attempt_id] = self._rounds.get(message.attempt_id), masked
        if old:
            old.end()
        masked.post_keys()
        return masked

    def end(self, attempt_id: int) -> None:
        """Let nobody wait for an attempt's round any more."""
        if known := self._rounds.get(attempt_id):
            known.end()

    def forget(self, attempt_id: int) -> None:
        """Give up the secrets of an attempt that is over."""
        with self._lock:
            known = self._rounds.pop(attempt_id, None)
        if known:
            known.end()

    # --- the server's tasks -------------------------------------------------------------------------------------------

    def share_keys(self, message: ShareKeys) -> None:
        """Post this client's shares, sealed for each other client of the round."""
        with self._round_of(message) as known:
            if known is None:
                return
            with known.lock:
                shares = known.session.seal_shares(message.roster)
            self._pins.meet([each for each in message.roster if each.node_id != self._node_id])
            known.post(lambda: self._server.post_shares(known.attempt_id, known.number, shares))

    def mask_update(self, message: MaskUpdate) -> None:
        """Let the round's thread mask its update with the clients that have shared."""
        with self._round_of(message) as known:
            if known is None:
                return
            with known.lock:
                unopened = known.session.take_shares(message.sealed)
            known.tell()
        for sentence in unopened:
            logger.warning("Attempt %d: %s", message.attempt_id, sentence)
            self._log(message.attempt_id, "warning", sentence)

    def unmask_round(self, message: UnmaskRound) -> None:
        """Post this client's shares of what masks the sum."""
        with self._round_of(message) as known:
            if known is None:
                return
            with known.lock:
                answer = known.session.answer(message.survivors)
            known.post(lambda: self._server.post_unmasking(known.attempt_id, known.number, answer))

    @contextlib.contextmanager
    def _round_of(self, message: ShareKeys | MaskUpdate | UnmaskRound) -> Iterator[MaskedRound | None]:
        """Give the message's round, None where it is not here; tell the server where it asks for what is not safe."""
        known = self._rounds.get(message.attempt_id)
        if known is None or known.number != message.round:
            logger.info("Round %d of attempt %d has no masks here (any more).", message.round, message.attempt_id)
            known = None
        try:
            yield known
        except LeftOut as left_out:
            logger.warning("Attempt %d: %s", message.attempt_id, left_out)
        except (NotSafe, BadKeys, AgentError) as error:
            assert known is not None
            known.end()
            logger.error("Attempt %d: %s", message.attempt_id, error)
            text = str(error)[:2000]
            self._tell(RunReport(attempt_id=message.attempt_id, kind="refused", round=message.round, text=text))
            # An update that is in has no use for the report, and the job's log has.
            self._log(message.attempt_id, "error", text)

    def _log(self, attempt_id: int, level: Literal["warning", "error"], text: str) -> None:
        """Say something in the job's log."""
        line = LogLine(time_ms=time.time_ns() // 1_000_000, level=level, text=text)
        self._tell(Logs(attempt_id=attempt_id, source=self._name, lines=[line]))

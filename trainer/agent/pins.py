"""Which key each other node had when this one first met it. From then on it must have no other: trust on first use.

So a server cannot put its own keys in the place of a known node's, and read what is meant for that node. A node that comes
for the first time it could invent: fingerprints are there to be compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from trainer.agent.home import AgentError, Home
from trainer.message import Key
from trainer.secure.keys import BadKeys, fingerprint
from trainer.secure.messages import PublicKeys


class Pin(BaseModel):
    node: str
    """The node's name when it was met, for people."""
    identity: Key


_FILE = TypeAdapter(dict[str, Pin])


class Pins:
    """`<home>/pins.json`, node id -> Pin. Read anew each time, so what `trainmaster node forget` removes is gone at once."""

    def __init__(self, home: Home, own_name: str) -> None:
        self._file = home.path / "pins.json"
        self._own_name = own_name

    def meet(self, roster: Sequence[PublicKeys]) -> None:
        """Remember the identities of nodes that are new; raise BadKeys where a known one has changed, or a new node comes under
        a known one's name, and remember none then.

        The signatures in `roster` have been verified.
        """
        with self._locked():
            pins = self.read()
            for each in roster:
                known = pins.get(each.node_id)
                if known and known.identity != each.identity:
                    raise BadKeys(
                        f"{each.node} signs with a key that {self._own_name} does not know: its fingerprint is "
                        f"{fingerprint(each.identity)}, and was {fingerprint(known.identity)}. If its owner confirms the new one, forget "
                        f"the old one on {self._own_name} with: trainmaster node forget {known.node}"
                    )
                other = next((pin for pin in pins.values() if pin.node == each.node), None)
                if known is None and other is not None:
                    raise BadKeys(
                        f"{each.node} comes as a new node, and {self._own_name} knows another one of that name: its fingerprint is "
                        f"{fingerprint(each.identity)}, and was {fingerprint(other.identity)}. If its owner confirms the new one, forget "
                        f"the old one on {self._own_name} with: trainmaster node forget {fingerprint(other.identity)}"
                    )
            new = {each.node_id: Pin(node=each.node, identity=each.identity) for each in roster}
            if new.keys() - pins.keys():
                self._write(new | pins)

    def forget(self, name: str) -> list[Pin]:
        """Remove and return the pins of nodes of this name, or of this key's fingerprint."""
        with self._locked():
            pins = self.read()
            gone = {node_id: pin for node_id, pin in pins.items() if name in (pin.node, fingerprint(pin.identity))}
            if gone:
                self._write({node_id: pin for node_id, pin in pins.items() if node_id not in gone})
        return list(gone.values())

    def read(self) -> dict[str, Pin]:
        """Return all pins by node id. Raises AgentError where the file is damaged: without it any key would be taken."""
        try:
            return _FILE.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError):
            raise AgentError(
                f"{self._file} cannot be read: bring it back from a backup, or remove it to trust the keys that other nodes show next."
            ) from None

    def _write(self, pins: dict[str, Pin]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({node_id: pin.model_dump() for node_id, pin in pins.items()}, indent=2))
        new.replace(self._file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Between the agent's threads, and the command line beside it."""
        with Path(f"{self._file}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

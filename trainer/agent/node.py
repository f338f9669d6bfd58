"""What all attempts on this node share: its name, its files, its data, its ways to the server."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from trainer.agent.blobs import BlobStore
from trainer.agent.config import Catalogue, threads_per_runner
from trainer.agent.home import Home
from trainer.agent.masking import Maskings
from trainer.agent.outbox import Outbox
from trainer.agent.server import Server
from trainer.data.source import Source
from trainer.protocol import Facts, RunReport
from trainer.sources import check_fit
from trainer.spec import JobSpec

if TYPE_CHECKING:
    from trainer.agent.ledger import Ledger


class Refused(Exception):
    """The node's data or policy forbids the work; the message is a sentence for the job's page."""


@dataclass(frozen=True)
class Node:
    name: str
    home: Home
    facts: Facts
    catalogue: Catalogue
    server: Server
    blobs: BlobStore
    outbox: Outbox
    gpus: GpuPool
    ledger: Ledger
    maskings: Maskings

    @property
    def threads(self) -> int:
        """CPU threads of one runner."""
        return threads_per_runner(self.facts.slots)

    def report(self, report: RunReport) -> None:
        self.outbox.put(report)

    def admit(self, spec: JobSpec) -> Source:
        """Return the data source of a job after checking the job once more, here. Raises Refused.

        The spec's word for its data is only ever a name among the built-in and the declared sources.
        """
        source = self.catalogue.find(spec.data.source)
        if source is None:
            raise Refused(
                f"{self.name} has no data source '{spec.data.source}'. It has {', '.join(self.catalogue.names)}; "
                f"its owner declares others in node.toml."
            )
        problems = check_fit(spec, source.description)
        if problems:
            raise Refused(f"{self.name}: {problems[0].message}")
        self._check_required(spec)
        self.ledger.check(spec)
        return source

    def _check_required(self, spec: JobSpec) -> None:
        missing = [name for name in self.catalogue.require if not (spec.federated and getattr(spec.federated, name))]
        if missing:
            raise Refused(
                f"{self.name} lends '{spec.data.source}' only to federated jobs with {_together(self.catalogue.require)}, as its "
                f"owner requires in node.toml: switch on {_together(missing)}, or leave this node out."
            )

    def network_environment(self) -> dict[str, str]:
        """Return what makes gloo and NCCL use the interface of this node's address, not the one of its host name."""
        for interface, addresses in psutil.net_if_addrs().items():
            if any(address.address == self.facts.address for address in addresses):
                return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        return {}


def _together(required: Iterable[str]) -> str:
    return " and ".join(_IN_WORDS[name] for name in required)


_IN_WORDS = {"secure_aggregation": "secure aggregation", "local_privacy": "local differential privacy"}


@dataclass
class GpuPool:
    """Which GPUs are lent to which runner. Safe to use from many threads."""

    num: int
    _taken: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, count: int) -> list[int]:
        """Return `count` free GPUs, now taken. Raises Refused and takes none when there are fewer."""
        with self._lock:
            free = [index for index in range(self.num) if index not in self._taken]
            if len(free) < count:
                raise Refused(f"The job needs {count} GPUs here, and {len(free)} of {self.num} are free.")
            self._taken.update(free[:count])
            return free[:count]

    def give_back(self, gpus: list[int]) -> None:
        with self._lock:
            self._taken.difference_update(gpus)


def update_file(folder: Path, round_number: int) -> Path:
    """Return where the update of a round lies until it is delivered."""
    return folder / f"update-{round_number}.safetensors"

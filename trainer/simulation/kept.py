"""What virtual clients keep from round to round, on the node that trains them. Torch-free.

The server records rounds in packs, some time after they were trained. After a crash the simulation goes on from the last
recorded round, so a client's file of that time must still be there: files are removed only when the server has a later one.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from trainer.federated.kept import ClientFiles
from trainer.weights import Weights, write_weights

logger = logging.getLogger(__name__)


class VirtualFiles(ClientFiles):
    """The files of one virtual client, in a folder of its own: among those of ten thousand, none would be found quickly."""

    def __init__(self, folder: Path, client: int, recorded: int) -> None:
        """`recorded` is the last round that the server has."""
        super().__init__(folder / f"client-{client}", client)
        self._recorded = recorded

    def last_before(self, round_number: int) -> int:
        """Return the client's last round before this one: each that left a file was counted. 0: there is none."""
        return max((number for number in self._rounds() if number < round_number), default=0)

    def write(self, round_number: int, tensors: Weights, *, counted_round: int) -> None:
        """Keep what this round leaves, and every file that a new attempt may start from."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_weights(self._file(round_number), tensors)
        for number in sorted(number for number in self._rounds() if number <= self._recorded)[:-1]:
            self.forget(number)


def take_up(folder: Path, first_round: int) -> None:
    """Make a node's files those from which round `first_round` starts, and say in the log where there are none to go on from.

    What rounds from `first_round` on left in an earlier attempt is removed: for the server they have not happened.
    """
    for client in folder.glob("client-*/"):
        for file in client.glob("client-*-round-*.safetensors"):
            if int(file.stem.rpartition("-")[2]) >= first_round:
                file.unlink()
        if not any(client.iterdir()):
            shutil.rmtree(client)
    if first_round > 1 and not any(folder.glob("client-*/")):
        logger.warning(
            "What the clients kept of rounds before %d is lost, and they start as new: it is not on this node.",
            first_round,
        )

"""What a client keeps for itself from round to round, in files that never leave its node. Torch-free.

SCAFFOLD keeps the client's control variate, FedBN its normalisation layers, top_k what did not travel. Each round writes a
file of its own before its update leaves, and starts from that of the last round whose update counted, which the server
names: what the client kept of a round that closed without it, the server never took in.
"""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.sections.federated import Federated
from trainer.weights import NotSafetensors, Weights, map_weights, read_metadata, write_weights

logger = logging.getLogger(__name__)

OWN = "own."
"""FedBN: `own.<name>` is the client's tensor of a normalisation layer."""
RESIDUAL = "residual."
"""top_k: `residual.<name>` is what has not travelled yet of the client's changes."""


def keeps_something(federated: Federated) -> bool:
    """Whether clients of such a job keep something from round to round."""
    return federated.strategy.name in ("scaffold", "fedbn") or federated.encoding.name == "top_k"


class ClientFiles:
    """The files of one client of a job: `client-<k>-round-<r>.safetensors` in the job's folder, which is made when needed."""

    def __init__(self, folder: Path, client: int) -> None:
        self._folder = folder
        self._client = client

    def read(self, counted_round: int) -> Weights:
        """Return what the client's last counted round left, mapped; nothing where there was none (0) or where it is lost.

        No other round's file will do in its place: the server has moved on with that one.
        """
        if not counted_round:
            return {}
        try:
            return map_weights(self._file(counted_round))
        except FileNotFoundError:
            why = "it is not on this node."
        except NotSafetensors as error:  # the machine lost power while it was written
            why = str(error)
        logger.warning("What the client kept of round %d is lost, and it starts as new: %s", counted_round, why)
        return {}

    def write(self, round_number: int, tensors: Weights, *, counted_round: int) -> None:
        """Keep what this round leaves, and what it started from: it may be asked again, or not count either."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_weights(self._file(round_number), tensors)
        for number in self._rounds() - {round_number, counted_round}:
            self.forget(number)

    def forget(self, round_number: int) -> None:
        """Remove what a round left: for the server it has not happened."""
        self._file(round_number).unlink(missing_ok=True)

    def _file(self, round_number: int) -> Path:
        return self._folder / f"client-{self._client}-round-{round_number}.safetensors"

    def _rounds(self) -> set[int]:
        files = self._folder.glob(f"client-{self._client}-round-*.safetensors")
        return {int(file.stem.rpartition("-")[2]) for file in files}


def newest_file(folder: Path) -> Path | None:
    """Return the last file that any client of the job has written in this folder."""
    return max(folder.glob("client-*.safetensors"), key=lambda file: file.stat().st_mtime_ns, default=None)


def write_own_model(model: Path, kept: Path, target: Path) -> None:
    """Write the final model with the client's own normalisation layers to `target`, where the client keeps any.

    Under FedBN the global model's layers are those that the job began with: only with its own is the model of use.
    """
    own = {name.removeprefix(OWN): tensor for name, tensor in map_weights(kept).items() if name.startswith(OWN)}
    if own:
        write_weights(target, map_weights(model) | own, read_metadata(model))

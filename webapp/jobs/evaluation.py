"""The server's measurement of new weights on its own rows. Needs torch: `webapp.jobs.server_data` imports it at the call."""

from __future__ import annotations

from functools import lru_cache

from trainer.data.source import Source
from trainer.federated.held_out import HeldOut
from trainer.spec import JobSpec
from trainer.weights import map_weights
from webapp.blobs import services as blobs


def measure_weights(spec: JobSpec, source: Source, *, weights: str, stamp: int) -> dict[str, float]:
    """Return server/loss and its like of the weights with this digest. `stamp` changes with the source's file.

    Raises SourceError where the data cannot be used, ValueError where the weights do not fit it, OSError where they are gone.
    """
    return _held_out(spec.model_copy(update={"name": "-"}), source, stamp).measure(map_weights(blobs.path_of(weights)))


@lru_cache(maxsize=4)
def _held_out(spec: JobSpec, source: Source, stamp: int) -> HeldOut:
    """Rows and model stay from round to round, of the last few jobs: jobs that run side by side are few, and rows may be many."""
    return HeldOut(spec, source)

"""The conductor's mathematics: first weights, a round's result, the final model. The one module of webapp that needs torch.

Blobs in, blobs out, no database. The conductor imports it when it starts (`webapp.celery.WarmUp`), so that no job waits for
torch; everyone else calls through `webapp.jobs.federated`, which imports it at the call.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from trainer.federated.aggregate import ClientUpdate, aggregate_updates
from trainer.federated.initial import initial_weights
from trainer.federated.strategy import build_strategy
from trainer.protocol import BlobRef
from trainer.sources import SourceSchema
from trainer.spec import JobSpec
from trainer.weights import Weights, map_weights, write_weights
from webapp.blobs import services as blobs


def make_initial_weights(spec: JobSpec, source: SourceSchema) -> BlobRef:
    """Return the blob of the weights that the first round starts from."""
    return blobs.save_bytes(initial_weights(spec, source))


def aggregate(spec: JobSpec, *, weights: str, updates: Sequence[tuple[str, int]]) -> BlobRef:
    """Return the blob of the next weights, from the digest of the present ones and (digest, examples) of each update.

    The updates are summed in the order given. Raises OSError where a blob is gone or the disk is full, ValueError where
    the updates do not make weights.
    """
    assert spec.federated is not None
    strategy = build_strategy(spec.federated.strategy)
    total = aggregate_updates([ClientUpdate(blobs.path_of(digest), num) for digest, num in updates])
    state = strategy.step(strategy.init(map_weights(blobs.path_of(weights))), total)
    return _save(state.weights)


def export_model(spec: JobSpec, *, weights: str) -> BlobRef:
    """Return the blob of the final model: the weights, with the spec as JSON in the file's metadata."""
    return _save(map_weights(blobs.path_of(weights)), {"spec": spec.model_dump_json()})


def _save(weights: Weights, metadata: dict[str, str] | None = None) -> BlobRef:
    path = blobs.incoming_dir() / uuid.uuid4().hex
    try:
        write_weights(path, weights, metadata)
        return blobs.save_file(path)
    finally:
        path.unlink(missing_ok=True)

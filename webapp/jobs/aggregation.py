"""The conductor's mathematics: first weights, a round's result, the final model. The one module of webapp that needs torch.

Blobs in, blobs out, no database. The conductor imports it when it starts (`webapp.celery.WarmUp`), so that no job waits for
torch; everyone else calls through `webapp.jobs.federated`, which imports it at the call.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.federated.aggregate import ClientUpdate
from trainer.federated.facts import RoundFacts
from trainer.federated.initial import initial_weights
from trainer.federated.memory_files import flat_memory, memory_by_kind
from trainer.federated.privacy import epsilon_after
from trainer.federated.strategy import State, build_strategy
from trainer.message import BlobRef
from trainer.sources import SourceSchema
from trainer.spec import JobSpec
from trainer.weights import Weights, map_weights, write_weights
from webapp.blobs import services as blobs
from webapp.jobs.secure_sum import Masks, unmasked_mean


@dataclass(frozen=True)
class RoundResult:
    """What came of a round."""

    weights: BlobRef
    memory: BlobRef | None
    """What the strategy remembers: a safetensors file of `<kind>/<tensor>`, such as `momentum/0.weight`. None: nothing."""
    facts: RoundFacts


def make_initial_weights(spec: JobSpec, source: SourceSchema) -> BlobRef:
    """Return the blob of the weights that the first round starts from."""
    return blobs.save_bytes(initial_weights(spec, source))


def aggregate(
    spec: JobSpec,
    *,
    number: int,
    weights: str,
    memory: str,
    updates: Sequence[ClientUpdate],
    masks: Masks | None = None,
) -> RoundResult:
    """Return what comes of round `number`, from the digests of its weights and of its memory (empty: none yet), and its updates.

    The updates are summed in the order given; `masks` unmask the sum of those that came masked. Without privacy the same updates
    give the same bytes; its noise is new at each call. Raises OSError where a blob is gone or the disk is full, ValueError where
    the updates do not make weights.
    """
    assert spec.federated is not None  # the caller closes a round
    federated = spec.federated
    strategy = build_strategy(spec)
    state = strategy.init(map_weights(blobs.path_of(weights)))
    if memory:
        state = State(weights=state.weights, memory=memory_by_kind(map_weights(blobs.path_of(memory))))
    total = unmasked_mean(spec, masks, updates) if masks else strategy.aggregate(state, updates)
    state = strategy.step(state, total)
    facts = total.facts
    if federated.privacy is not None:
        spent = epsilon_after(federated.privacy, federated.clients, number)
        facts = facts.model_copy(update={"epsilon": spent})
    flat = flat_memory(state.memory)
    return RoundResult(weights=_save(state.weights), memory=_save(flat) if flat else None, facts=facts)


def export_model(spec: JobSpec, *, weights: str) -> BlobRef:
    """Return the blob of the final model: the weights, with the spec as JSON in the file's metadata."""
    return _save(map_weights(blobs.path_of(weights)), {"spec": spec.model_dump_json()})


def _save(weights: Weights, metadata: dict[str, str] | None = None) -> BlobRef:
    path = blobs.incoming_dir() / uuid.uuid4().hex
    try:
        write_weights(path, weights, metadata)
        return blobs.adopt(path)
    finally:
        path.unlink(missing_ok=True)

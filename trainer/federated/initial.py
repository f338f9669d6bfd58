"""The weights that a federated job starts from."""

from __future__ import annotations

from trainer.models import build_model, weights_of
from trainer.sources import SourceSchema
from trainer.spec import JobSpec
from trainer.weights import pack_weights


def initial_weights(spec: JobSpec, source: SourceSchema) -> bytes:
    """Return the first weights as a safetensors file. They depend on the spec's model and seed alone: same spec, same bytes."""
    return pack_weights(weights_of(build_model(spec.model, source, spec.seed)))

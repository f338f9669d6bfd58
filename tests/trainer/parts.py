"""Small specs and sources that the trainer's tests share."""

from __future__ import annotations

from typing import Any

from trainer.data.source import Source
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec


def builtin(name: str = "digits") -> Source:
    return Source(description=BUILTIN_SOURCES[name])


def spec_of(mode: str = "federated", *, model: str = "linear", source: str = "digits", **sections: Any) -> JobSpec:
    """A valid spec; `sections` are merged over the defaults, such as training={"batch_size": 8}."""
    raw: dict[str, Any] = {"name": "test", "mode": mode, "model": {"name": model}, "data": {"source": source}}
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section
    return JobSpec.model_validate(raw)

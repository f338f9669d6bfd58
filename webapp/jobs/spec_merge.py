"""Changes laid over a spec: what a clone with overrides trains."""

from __future__ import annotations

from typing import Any

CHOICES = ("name", "scheme")
"""Fields by which a part of a spec says which registered entry it is."""


def merge_spec(spec: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `spec` with `changes` laid over it, as JSON merge patch does it (RFC 7396): null removes a field.

    Two rules beyond the RFC, since the remaining options would belong to something else: a part that changes its
    choice (`model.name`, `partition.scheme`) is replaced as a whole, and a change of mode drops the other mode's section.
    """
    merged = _merge(spec, changes)
    if changes.get("mode", spec.get("mode")) != spec.get("mode"):
        old = str(spec.get("mode"))
        if old not in changes:
            merged.pop(old, None)
    return merged


def _merge(old: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, new in changes.items():
        before = old.get(key)
        if new is None:
            merged.pop(key, None)
        elif isinstance(new, dict) and isinstance(before, dict) and not _chooses_anew(before, new):
            merged[key] = _merge(before, new)
        else:
            merged[key] = new
    return merged


def _chooses_anew(before: dict[str, Any], new: dict[str, Any]) -> bool:
    return any(choice in before and choice in new and before[choice] != new[choice] for choice in CHOICES)

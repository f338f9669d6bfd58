"""The one way to leave an audit row."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User

from webapp.core.models import AuditEntry


def record_act(*, actor: User | None, act: str, target: str, **details: Any) -> None:
    """Append one administrative act, inside the caller's transaction. `actor` is None where the command line acted."""
    AuditEntry.objects.create(
        actor=actor,
        actor_name=actor.username if actor else "command line",
        act=act,
        target=target[:200],
        details=details,
    )

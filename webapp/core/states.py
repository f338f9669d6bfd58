"""One door per state change: compare-and-swap on the old state, and a row of history in the same transaction."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models, transaction
from django.utils import timezone

from webapp.core.models import Transition


class Stateful(models.Model):
    """A row with a state. Subclasses list their allowed moves in MOVES; only `move_to` writes the state."""

    MOVES: ClassVar[dict[str, frozenset[str]]]
    """Old state -> states that may follow. A state with no followers is terminal."""

    state = models.CharField(max_length=16)
    state_reason = models.CharField(max_length=2000, blank=True, default="")
    state_changed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        abstract = True

    @property
    def thread(self) -> str:
        """Which history this row's transitions belong to, such as `job:12`."""
        raise NotImplementedError

    @property
    def is_terminal(self) -> bool:
        return not self.MOVES[self.state]

    def move_to(self, new: str, reason: str = "", *, actor: str = "", **fields: Any) -> bool:
        """Move to `new`, setting `fields` in the same statement. Return False where another worker got there first.

        Raises ValueError for a move that MOVES does not list: that is our mistake, not a race.
        """
        old = self.state
        if new not in self.MOVES[old]:
            raise ValueError(f"{type(self).__name__} {self.pk} cannot go from {old} to {new}.")
        now = timezone.now()
        # A reason may be a node's own words, and PostgreSQL keeps no NUL.
        reason = reason.replace("\0", "\ufffd")[:2000]
        changes = {"state": new, "state_reason": reason, "state_changed_at": now, **fields}
        with transaction.atomic():
            moved = type(self)._default_manager.filter(pk=self.pk, state=old).update(**changes)
            if moved != 1:
                return False  # another worker got there first
            Transition.objects.create(
                thread=self.thread,
                subject=f"{self._meta.model_name}:{self.pk}",
                old=old,
                new=new,
                reason=reason,
                actor=actor,
                at=now,
            )
        for name, value in changes.items():
            setattr(self, name, value)
        return True

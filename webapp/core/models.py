"""History: every state change, and every administrative act."""

from django.conf import settings
from django.db import models
from django.utils import timezone


class Transition(models.Model):
    """One state change of a job, attempt, round or node. Append-only."""

    thread = models.CharField(max_length=64)
    """The history it belongs to: `job:<id>` for a job, its attempts and rounds; `node:<id>` for a node."""
    subject = models.CharField(max_length=64)
    """What changed: `job:12`, `attempt:7`, `round:3`, `node:<id>`."""
    old = models.CharField(max_length=16, blank=True)
    """Empty for the first row of a subject."""
    new = models.CharField(max_length=16)
    reason = models.CharField(max_length=2000, blank=True)
    actor = models.CharField(max_length=150, blank=True)
    """User name of who asked for it; empty where the system acted by itself."""
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [models.Index(fields=["thread", "id"])]
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.subject}: {self.old or 'new'} -> {self.new}"


class AuditEntry(models.Model):
    """One administrative act. Append-only."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    actor_name = models.CharField(max_length=150)
    """Kept beside the reference: the entry outlives the account."""
    act = models.CharField(max_length=64)
    """verb_noun of the service, such as approve_node."""
    target = models.CharField(max_length=200)
    details = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.actor_name}: {self.act} {self.target}"

"""Nodes and the tokens by which they join."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.utils import timezone

from trainer.protocol import Facts
from webapp.core.states import Stateful
from webapp.teams.models import Team


class Node(Stateful):
    """An enrolled machine: one agent, some slots, some data sources."""

    class State(models.TextChoices):
        PENDING = "pending", "Waiting for approval"
        OFFLINE = "offline", "Offline"
        ONLINE = "online", "Online"
        REVOKED = "revoked", "Revoked"

    MOVES = {
        State.PENDING: frozenset({State.OFFLINE, State.REVOKED}),
        State.OFFLINE: frozenset({State.ONLINE, State.REVOKED}),
        State.ONLINE: frozenset({State.OFFLINE, State.REVOKED}),
        State.REVOKED: frozenset(),
    }
    APPROVED = (State.OFFLINE, State.ONLINE)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(max_length=63)
    """Unique among the nodes that are not revoked: a machine that joins anew may have its old name."""
    secret_hash = models.CharField(max_length=64, unique=True)
    """SHA-256 of the node's secret. The broker's user is made from this hash, so it can be made anew at any time."""
    facts_json = models.JSONField(default=dict)
    slots = models.PositiveIntegerField(default=1)
    labels = models.JSONField(default=list)
    teams = models.ManyToManyField(Team, blank=True, related_name="nodes")
    """Teams that may use it; none means all."""
    boot_id = models.CharField(max_length=64, blank=True)
    """The agent's present start. When it changes, everything that the node ran before is gone."""
    last_seen_at = models.DateTimeField(null=True)
    cpu_percent = models.FloatField(default=0)
    memory_used_bytes = models.BigIntegerField(default=0)
    running_attempts = models.JSONField(default=list)
    """Ids of the attempts that the node says it is working on."""
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["name"], condition=~models.Q(state="revoked"), name="node_name_once")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def thread(self) -> str:
        return f"node:{self.pk}"

    @property
    def facts(self) -> Facts:
        return Facts.model_validate(self.facts_json)


class EnrolmentToken(models.Model):
    """A one-time, expiring right to add one node. Only its SHA-256 is kept."""

    hash = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    preapproved = models.BooleanField(default=False)
    used_at = models.DateTimeField(null=True)
    node = models.ForeignKey(Node, null=True, on_delete=models.SET_NULL, related_name="+")

    def __str__(self) -> str:
        return f"enrolment token {self.pk}"

"""What the API says about jobs. Sizes in bytes, durations in seconds, times in UTC (ISO 8601)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from ninja import Field, Schema
from pydantic import ConfigDict

from trainer.federated.facts import RoundFacts
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Participation, Round


def plain_spec(job: Job) -> dict[str, Any]:
    """The job's spec as one would write it: without the section of the other mode."""
    return job.spec.model_dump(mode="json", exclude_none=True)


class JobFilters(Schema):
    """Which jobs to list. All conditions must hold."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    state: list[Job.State] = []
    """Only jobs in one of these states; repeat the parameter for several."""
    mode: Literal["federated", "distributed"] | None = None
    team: str = ""
    """Only jobs of the team with this slug."""
    owner: str = ""
    """Only jobs of the user with this name."""
    q: str = Field("", max_length=200)
    """Only jobs whose name contains this, or whose number it is."""
    limit: int = Field(50, ge=1, le=500)
    offset: int = Field(0, ge=0, le=10_000_000)


class PageFilters(Schema):
    limit: int = Field(1000, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=10_000_000)


class Progress(Schema):
    done: int
    total: int
    planned: int
    """More than `total` where the job stopped early."""
    unit: Literal["rounds", "epochs"]


class JobOut(Schema):
    id: int
    name: str
    mode: str
    state: str
    state_reason: str
    state_changed_at: datetime
    waiting_for: dict[str, Any] | None
    """What the job waits for, since when, until when, and what happens then; null while it waits for nothing."""
    progress: Progress
    owner: str
    team: str
    created_at: datetime
    cloned_from: int | None

    @staticmethod
    def resolve_progress(job: Job) -> Progress:
        unit: Literal["rounds", "epochs"] = "rounds" if job.mode == "federated" else "epochs"
        return Progress(done=job.progress_done, total=job.progress_total, planned=job.progress_planned, unit=unit)

    @staticmethod
    def resolve_owner(job: Job) -> str:
        return job.owner.username

    @staticmethod
    def resolve_team(job: Job) -> str:
        return job.team.slug

    @staticmethod
    def resolve_cloned_from(job: Job) -> int | None:
        return job.cloned_from_id


class JobPage(Schema):
    items: list[JobOut]
    total: int
    limit: int
    offset: int


class ResumeIn(Schema):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    rounds: int | None = Field(None, ge=1, le=100_000)
    """Rounds to add to those that the job was to have."""


class AssignmentOut(Schema):
    node: str
    index: int
    """Index of the client, or of the group of ranks."""
    slots: int
    state: str

    @staticmethod
    def resolve_node(assignment: Assignment) -> str:
        return assignment.node.name


class AttemptOut(Schema):
    id: int
    number: int
    state: str
    state_reason: str
    started_at: datetime
    ended_at: datetime | None
    assignments: list[AssignmentOut]

    @staticmethod
    def resolve_assignments(attempt: Attempt) -> list[Assignment]:
        return list(attempt.assignments.all())


class JobDetail(JobOut):
    spec: dict[str, Any]
    attempts: list[AttemptOut]

    @staticmethod
    def resolve_spec(job: Job) -> dict[str, Any]:
        return plain_spec(job)

    @staticmethod
    def resolve_attempts(job: Job) -> list[Attempt]:
        return list(job.attempts.prefetch_related("assignments__node"))


class ParticipationOut(Schema):
    client: int
    node: str
    state: str
    state_reason: str
    asked_at: datetime
    returned_at: datetime | None
    num_examples: int
    size_bytes: int
    """Bytes that the client sent."""
    bytes_down: int
    """Bytes that the client fetched; 0 where it mapped the server's own files."""
    seconds_training: float
    num_steps: int
    """Optimizer steps in the round."""
    loss_before: float | None
    """Mean loss of the incoming weights on the client's training rows, where the strategy weighs by it."""
    epsilon: float | None
    """Local privacy: what this job has spent of the client's rows so far, by its node's ledger."""
    num_saturated: int | None
    """Secure aggregation: parameters of the update whose change was cut to the clip."""
    label_counts: dict[str, int] | None
    """Training rows of each class, where the node's policy shares them: with the client's first update of an attempt."""
    counted_in: int | None
    """FedBuff: number of the round that counted the update, perhaps a later one than it was trained from."""
    metrics: dict[str, Any]

    @staticmethod
    def resolve_counted_in(participation: Participation) -> int | None:
        return participation.counted_in.number if participation.counted_in else None

    @staticmethod
    def resolve_client(participation: Participation) -> int:
        return participation.assignment.index

    @staticmethod
    def resolve_node(participation: Participation) -> str:
        return participation.assignment.node.name


class VirtualClientOut(Schema):
    client: int
    num_examples: int
    num_steps: int
    seconds_training: float
    """Its share of the time, where clients were trained side by side."""
    loss: float | str | None
    """Training loss of the last local epoch; NaN and infinities as text."""
    norm: float | str | None
    """Euclidean norm of the update, before any clipping."""


class SimulationOut(Schema):
    num_clients: int
    num_examples: int
    """Of all of the round's clients, as `seconds_training`, which is the sum over them."""
    seconds_training: float
    clients: list[VirtualClientOut]
    """The first hundred by index."""


class RoundOut(Schema):
    number: int
    attempt: int
    """Number of the attempt that ran it."""
    state: str
    state_reason: str
    opened_at: datetime
    deadline_at: datetime
    closed_at: datetime | None
    num_quorum: int
    phase: str
    """Secure aggregation, while the round is under way: keys, shares, updates or unmasking. Empty: none of these."""
    metrics: dict[str, Any]
    """Means over the clients, weighted by their examples."""
    facts: RoundFacts
    """What the aggregation says of itself. Lists are in the order of the updates that were summed, by client."""
    participations: list[ParticipationOut]
    simulation: SimulationOut | None
    """Of a simulated round, its virtual clients; null for a round of real ones, which have participations."""

    @staticmethod
    def resolve_simulation(round_: Round) -> dict[str, Any] | None:
        return round_.facts if "num_clients" in round_.facts else None

    @staticmethod
    def resolve_attempt(round_: Round) -> int:
        return round_.attempt.number

    @staticmethod
    def resolve_participations(round_: Round) -> list[Participation]:
        return list(round_.participations.all())


class RoundPage(Schema):
    items: list[RoundOut]
    total: int
    limit: int
    offset: int


class EventOut(Schema):
    """One change of state of the job, an attempt, a round or what belongs to them."""

    id: int
    at: datetime
    subject: str
    old: str
    new: str
    reason: str
    actor: str
    """Who asked for it; empty where the system acted by itself."""


class EventPage(Schema):
    items: list[EventOut]
    total: int
    limit: int
    offset: int


class ArtifactOut(Schema):
    id: int
    name: str
    digest: str
    """SHA-256 of the file."""
    size_bytes: int
    attempt: int
    created_at: datetime
    url: str

    @staticmethod
    def resolve_attempt(artifact: Artifact) -> int:
        return artifact.attempt.number

    @staticmethod
    def resolve_url(artifact: Artifact) -> str:
        return f"/api/v1/jobs/{artifact.job_id}/artifacts/{artifact.pk}/download"

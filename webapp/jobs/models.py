"""Jobs, their attempts, the slots they hold, and the rounds of federated ones."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from trainer.spec import JobSpec
from webapp.core.states import Stateful
from webapp.fleet.models import Node
from webapp.teams.models import Team


class Job(Stateful):
    """What a user asked for: one spec, one owner team."""

    class State(models.TextChoices):
        QUEUED = "queued", "Queued"
        RUNNING = "running", "Running"
        FINISHED = "finished", "Finished"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    ENDED = (State.FINISHED, State.FAILED, State.CANCELLED)
    MOVES = {
        State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
        State.RUNNING: frozenset({State.QUEUED, *ENDED}),
        # Resuming by hand opens a new attempt of the same job; a finished one is given more rounds.
        **dict.fromkeys(ENDED, frozenset({State.QUEUED})),
    }

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="jobs")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="jobs")
    name = models.CharField(max_length=120)
    mode = models.CharField(max_length=16)
    spec_json = models.JSONField()
    cloned_from = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="clones")
    waiting_for = models.JSONField(null=True)
    """What the job waits for, as `selectors.Waiting`: what, since, until, and what happens then. None: nothing."""
    progress_done = models.PositiveIntegerField(default=0)
    """Rounds closed (so the number of the last one), or epochs done."""
    progress_total = models.PositiveIntegerField(default=0)
    """Rounds or epochs that the job is to have."""
    progress_planned = models.PositiveIntegerField(default=0)
    """As many as its spec has, and more where it was resumed with more. `progress_total` is less where it stopped early."""
    num_retries = models.PositiveIntegerField(default=0)
    """Attempts that lost a node since the job was submitted, resumed, or last closed a round."""
    submission_key = models.CharField(max_length=100, blank=True, default="")
    """What the submitter calls this submission, so that sending it twice makes one job. Empty: no name."""
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "submission_key"], condition=~Q(submission_key=""), name="submission_once"
            )
        ]
        indexes = [
            models.Index(fields=["team", "-id"]),
            models.Index(fields=["state"], name="job_open", condition=Q(state__in=["queued", "running"])),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} {self.name}"

    @property
    def thread(self) -> str:
        return f"job:{self.pk}"

    @property
    def is_terminal(self) -> bool:
        """Ended; it may still be resumed by hand."""
        return self.state in self.ENDED

    @property
    def spec(self) -> JobSpec:
        return JobSpec.model_validate(self.spec_json)


class Attempt(Stateful):
    """One try at running a job. Its id fences off the messages of older tries."""

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        FINISHED = "finished", "Finished"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    MOVES = {
        State.RUNNING: frozenset({State.FINISHED, State.FAILED, State.CANCELLED}),
        State.FINISHED: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    weights_digest = models.CharField(max_length=64, db_index=True, blank=True)
    """Federated: the weights that the next round starts from."""
    weights_size_bytes = models.BigIntegerField(default=0)
    memory_digest = models.CharField(max_length=64, db_index=True, blank=True)
    """Federated: what the strategy remembers beside these weights, such as a momentum; empty: nothing."""
    rendezvous = models.JSONField(null=True)
    """Distributed: where the ranks meet, as `protocol.Rendezvous`, announced by group rank 0."""
    started_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["job", "number"], name="attempt_number_once"),
            # Two schedulers cannot both start the same job.
            models.UniqueConstraint(fields=["job"], condition=Q(state="running"), name="one_running_attempt"),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number} of job {self.job_id}"

    @property
    def thread(self) -> str:
        return f"job:{self.job_id}"


class Assignment(Stateful):
    """Slots of one node, held for one attempt: a client of a federated job, or a group of ranks."""

    class State(models.TextChoices):
        ACTIVE = "active", "Active"
        DONE = "done", "Done"  # its ranks ended well; the slots are still held
        FAILED = "failed", "Failed"  # its ranks broke, or the node's policy forbids them; the slots are still held
        RELEASING = "releasing", "Stopping"
        RELEASED = "released", "Released"

    MOVES = {
        State.ACTIVE: frozenset({State.DONE, State.FAILED, State.RELEASING, State.RELEASED}),
        State.DONE: frozenset({State.RELEASING, State.RELEASED}),
        State.FAILED: frozenset({State.RELEASING, State.RELEASED}),
        State.RELEASING: frozenset({State.RELEASED}),
        State.RELEASED: frozenset(),
    }

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="assignments")
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="assignments")
    index = models.PositiveIntegerField()
    """Client index, or group rank."""
    slots = models.PositiveIntegerField()
    boot_id = models.CharField(max_length=64, blank=True)
    """The node's boot when it was last given work. Another boot means that the work is gone."""
    sent_at = models.DateTimeField(null=True)
    """When the work (ranks) or the last stop was sent."""
    started_at = models.DateTimeField(null=True)
    unnamed_since = models.DateTimeField(null=True)
    """Distributed: since when the node's heartbeats leave out the attempt that it had started; None while they name it."""
    model_sent_at = models.DateTimeField(null=True)
    """When the node was last told to keep the final model."""
    model_kept_at = models.DateTimeField(null=True)
    """When the node said that it keeps the final model."""

    class Meta:
        ordering = ["index"]
        constraints = [
            models.UniqueConstraint(fields=["attempt", "index"], name="assignment_index_once"),
            models.UniqueConstraint(fields=["attempt", "node"], name="assignment_node_once"),
        ]
        indexes = [models.Index(fields=["node"], name="assignment_held", condition=~Q(state="released"))]

    def __str__(self) -> str:
        return f"{self.slots} slots of node {self.node_id} for attempt {self.attempt_id}"

    @property
    def thread(self) -> str:
        return f"job:{self.attempt.job_id}"


class Round(Stateful):
    """One exchange of a federated job: weights out, updates in, aggregated."""

    class State(models.TextChoices):
        OPEN = "open", "Open"
        CLOSING = "closing", "Aggregating"  # the set of updates is fixed; anyone may compute the result, one wins
        CLOSED = "closed", "Closed"
        FAILED = "failed", "Failed"

    MOVES = {
        State.OPEN: frozenset({State.CLOSING, State.FAILED}),
        State.CLOSING: frozenset({State.CLOSED, State.FAILED}),
        State.CLOSED: frozenset(),
        State.FAILED: frozenset(),
    }
    UNDER_WAY = (State.OPEN, State.CLOSING)

    class Phase(models.TextChoices):
        KEYS = "keys", "Exchanging keys"
        SHARES = "shares", "Sharing secrets"
        UPDATES = "updates", "Training"
        UNMASKING = "unmasking", "Unmasking"

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField()
    weights_digest = models.CharField(max_length=64, db_index=True)
    """The weights that went out; empty between two records of a simulation, when they do not leave its nodes."""
    weights_size_bytes = models.BigIntegerField(default=0)
    memory_digest = models.CharField(max_length=64, db_index=True, blank=True)
    """What the strategy remembered when they went out; empty: nothing."""
    num_quorum = models.PositiveIntegerField()
    opened_at = models.DateTimeField(default=timezone.now)
    deadline_at = models.DateTimeField()
    phase = models.CharField(max_length=16, blank=True, default="")
    """Secure aggregation: what the round waits for, as `Phase`, and since when (`phase_at`)."""
    phase_at = models.DateTimeField(null=True)
    closed_at = models.DateTimeField(null=True)
    result_digest = models.CharField(max_length=64, blank=True)
    """The weights that came of it."""
    metrics = models.JSONField(default=dict)
    """Means over the clients, weighted by their examples."""
    facts = models.JSONField(default=dict)
    """What the aggregation says of itself, as `RoundFacts`; of a simulated round its clients as well, as `SimulatedFacts`."""

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["attempt", "number"], name="round_number_once")]

    def __str__(self) -> str:
        return f"round {self.number} of attempt {self.attempt_id}"

    @property
    def thread(self) -> str:
        return f"job:{self.attempt.job_id}"


class Participation(Stateful):
    """One client in one round: the ledger of who was asked, who returned, and why not."""

    class State(models.TextChoices):
        ASKED = "asked", "Asked"
        RETURNED = "returned", "Returned"
        REFUSED = "refused", "Refused"  # at the server's door, or by the node's policy
        FAILED = "failed", "Failed"  # the runner broke
        LATE = "late", "Late"  # not in when the round closed
        LOST = "lost", "Lost"  # its node is gone; where the round closes without it, for good

    MOVES = {
        State.ASKED: frozenset({State.RETURNED, State.REFUSED, State.FAILED, State.LATE, State.LOST}),
        # A node that comes back before the deadline is asked again; one that was only out of reach may still return.
        # LATE: under FedBuff, where the client is asked anew in a later round.
        State.LOST: frozenset({State.ASKED, State.RETURNED, State.REFUSED, State.FAILED, State.LATE}),
        State.RETURNED: frozenset(),
        State.REFUSED: frozenset(),
        State.FAILED: frozenset(),
        State.LATE: frozenset(),
    }
    OUT = (State.ASKED, State.LOST)
    """Whose update may still come, while the round is open."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="participations")
    assignment = models.ForeignKey(Assignment, on_delete=models.CASCADE, related_name="participations")
    asked_at = models.DateTimeField(default=timezone.now)
    boot_id = models.CharField(max_length=64, blank=True)
    """The node's boot when it was asked last."""
    started_at = models.DateTimeField(null=True)
    returned_at = models.DateTimeField(null=True)
    update_digest = models.CharField(max_length=64, db_index=True, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    num_examples = models.PositiveBigIntegerField(default=0)
    seconds_training = models.FloatField(default=0)
    progress_at = models.DateTimeField(null=True)
    """When the client last said that it has come further."""
    num_steps = models.PositiveBigIntegerField(default=0)
    """Optimizer steps of the client in this round."""
    loss_before = models.FloatField(null=True)
    """Mean loss of the incoming weights on the client's training rows, where the strategy weighs by it."""
    bytes_down = models.BigIntegerField(default=0)
    """What the node fetched for this round; `size_bytes` is what it sent."""
    num_saturated = models.PositiveBigIntegerField(null=True)
    """Secure aggregation: parameters whose change was cut to the clip."""
    epsilon = models.FloatField(null=True)
    """Local privacy: what the job has spent of the client's rows up to this round, as the node says."""
    counted_in = models.ForeignKey(Round, null=True, on_delete=models.CASCADE, related_name="counted")
    """FedBuff: the round whose buffer took the update."""
    label_counts = models.JSONField(null=True)
    """Training rows of each class, where the node's policy shares them: with the client's first update of an attempt."""
    metrics = models.JSONField(default=dict)

    class Meta:
        ordering = ["assignment__index"]
        constraints = [models.UniqueConstraint(fields=["assignment", "round"], name="asked_once_a_round")]

    def __str__(self) -> str:
        return f"assignment {self.assignment_id} in round {self.round_id}"

    @property
    def thread(self) -> str:
        return f"job:{self.round.attempt.job_id}"


class MaskExchange(models.Model):
    """What one client of a securely aggregated round has sent for the masks. Nothing here lets the server unmask one update."""

    participation = models.OneToOneField(Participation, on_delete=models.CASCADE, related_name="masks")
    keys = models.JSONField()
    """As `trainer.secure.messages.PublicKeys`; the others as that module's `SealedShares.sealed` and `Unmasking`."""
    sealed = models.JSONField(null=True)
    unmasking = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"masks of participation {self.participation_id}"


class Artifact(models.Model):
    """A file that a job leaves behind. The bytes are a blob."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="artifacts")
    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="artifacts")
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, db_index=True)
    size_bytes = models.BigIntegerField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["attempt", "name"], name="artifact_name_once")]

    def __str__(self) -> str:
        return f"{self.name} of job {self.job_id}"


class Stray(models.Model):
    """What a node sent that nobody waits for: of an old attempt or round, or of work that is not its own."""

    class Kind(models.TextChoices):
        UPDATE = "update", "Update"
        ARTIFACT = "artifact", "Artifact"
        REPORT = "report", "Report"
        RENDEZVOUS = "rendezvous", "Rendezvous"
        TELEMETRY = "telemetry", "Points and logs"

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="strays")
    kind = models.CharField(max_length=16)
    count = models.PositiveBigIntegerField(default=0)
    last_reason = models.CharField(max_length=500, blank=True)
    last_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "kind"], name="stray_kind_once")]

    def __str__(self) -> str:
        return f"{self.count} stray {self.kind} messages of node {self.node_id}"

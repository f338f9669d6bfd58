"""Every message between the server and a node, and between an agent and its runners. Torch-free, JSON, no pickle.

Three ways lead over the wire:

* server to agent: Celery tasks on the node's own queue, under its own key prefix. The task's one argument is one of the
  messages below as JSON. Every delivery may come twice; `attempt_id` fences off older tries.
* agent to server: one Redis stream per node (`TELEMETRY_STREAM` under the node's prefix). The entry's id is
  `<epoch>-<sequence>`, chosen by the agent: the broker refuses an id that is not larger than the last, so that a repeated
  append is harmless, and ingest remembers the last id that it committed, so that a repeated read is harmless as well.
* agent to server over HTTP: enrolment, blobs, and what needs an answer (an update, an artifact, a rendezvous).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.message import BlobRef, Digest, Key, Message
from trainer.secure.messages import MaskingTerms, MaskUpdate, ShareKeys, UnmaskRound
from trainer.simulation.messages import RoundStart
from trainer.sources import Line, SourceSchema
from trainer.spec import JobSpec


def key_prefix(node_id: str) -> str:
    """Return the broker prefix under which lies all that a node may read or write (its `global_keyprefix`)."""
    return f"n:{node_id}:"


TASK_QUEUE = "tasks"
"""The node's only Celery queue; kombu puts the node's prefix before it."""
TELEMETRY_STREAM = "telemetry"
"""The node's stream, without its prefix."""
HEARTBEAT_SECONDS = 3.0
"""Pause between two heartbeats of a node."""
OFFLINE_AFTER_SECONDS = 15.0
"""A node is offline when this long has passed since its last sign."""


# --- server to agent: Celery tasks ------------------------------------------------------------------------------------


class TrainRound(Message):
    """Task `trainer.train_round`: train one client for one round, then deliver its update over HTTP."""

    job_id: int
    attempt_id: int
    round: int = Field(ge=1)
    spec: JobSpec
    client: int = Field(ge=0)
    """Index of this client among the job's clients; with the seed it fixes the client's rows and draws."""
    num_clients: int = Field(ge=1)
    weights: BlobRef
    memory: BlobRef | None = None
    """What the strategy remembers, where clients need it: SCAFFOLD's control variate of the server."""
    evaluate: bool = True
    """Whether to measure the incoming and the trained weights on the test rows in this round."""
    masking: MaskingTerms | None = None
    """Secure aggregation: the update leaves the node masked. The agent posts its keys before it trains."""
    counted_round: int = Field(default=0, ge=0)
    """The last closed round of the job, of any attempt, that has an update of this client in it: it goes on from what it kept
    of that one. 0: of none, or clients keep nothing in this job."""


class RunRanks(Message):
    """Task `trainer.run_ranks`: run this node's ranks of a distributed job, or of a simulation, under torch elastic."""

    job_id: int
    attempt_id: int
    spec: JobSpec
    group_rank: int = Field(ge=0)
    """Index of this node in the gang. Group rank 0 hosts the rendezvous and announces its address over HTTP."""
    num_groups: int = Field(ge=1)
    start: RoundStart | None = None
    """Of a simulation."""


class StopAttempt(Message):
    """Task `trainer.stop_attempt`: end all runners of an attempt and report it `released`. Harmless when none runs."""

    attempt_id: int


class ReceiveModel(Message):
    """Task `trainer.receive_model`: keep the final model of a job under the node's home (the seed's last step)."""

    job_id: int
    attempt_id: int
    weights: BlobRef


TASKS: dict[str, type[Message]] = {
    "trainer.train_round": TrainRound,
    "trainer.share_keys": ShareKeys,
    "trainer.mask_update": MaskUpdate,
    "trainer.unmask_round": UnmaskRound,
    "trainer.run_ranks": RunRanks,
    "trainer.stop_attempt": StopAttempt,
    "trainer.receive_model": ReceiveModel,
}


# --- agent to server: the stream --------------------------------------------------------------------------------------
# An entry has the fields `kind` (one of the names below), `head` (the message as JSON) and, for points only, `data`.


class Gpu(Message):
    name: str
    memory_bytes: int
    memory_used_bytes: int = 0
    utilisation_percent: float = 0.0


class SourceBudget(Message):
    """What the owner of a node allows all jobs together to learn of one data source's rows, and what they have spent."""

    source: Annotated[str, Field(max_length=100)]
    max_epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    spent_epsilon: float = Field(default=0, ge=0)
    """At `delta`, over all jobs, by the node's own ledger."""


class Facts(Message):
    """What a machine is. Sent at enrolment and with each heartbeat."""

    hostname: Line
    platform: Line
    agent_version: Line
    torch_version: Line
    python_version: Line
    num_cpus: int
    memory_bytes: int
    gpus: list[Gpu] = []
    slots: int = Field(default=1, ge=1, le=10_000)
    address: Line = "127.0.0.1"
    """Address at which other nodes reach this one; ranks of a distributed job meet there."""
    sources: list[SourceSchema] = []
    """The node's own data sources, as its node.toml describes them."""
    budgets: list[SourceBudget] = []
    """The privacy budgets of its node.toml, built-in data sets included."""
    public_key: Key | None = None
    """The node's Ed25519 key, with which it signs the keys of securely aggregated rounds. None: an agent of before."""


class Heartbeat(Message):
    """Kind `heartbeat`: a sign of life every HEARTBEAT_SECONDS, and at once when `attempts` changes."""

    boot_id: Annotated[str, Field(max_length=64, pattern=r"^[0-9A-Za-z-]*$")]
    """Made anew at each start of the agent. A new one means that everything that the node ran before is gone."""
    facts: Facts
    cpu_percent: float
    memory_used_bytes: int
    attempts: list[int] = []
    """Attempts that have a runner, or a task being worked on, at this moment."""
    going_away: bool = False
    """The agent is stopping in good order: the node is offline at once."""


class SeriesHead(Message):
    name: str = Field(min_length=1, max_length=100)
    """Such as train/loss."""
    source: str = Field(min_length=1, max_length=100)
    """Who reported it: the node's name for a client, `rank 3` for a rank."""
    count: int = Field(ge=1, le=1_000_000)


class Points(Message):
    """Kind `points`: a pack of metric values of one attempt.

    `data` holds, for each series in order, three little-endian arrays of its `count`: steps (uint32), times (uint32,
    milliseconds after `base_time_ms`), values (float64; NaN and infinities are kept).
    """

    attempt_id: int
    base_time_ms: int
    """Unix time in milliseconds that the times count from."""
    series: list[SeriesHead]
    dropped: int = 0
    """Points that the sender had to leave out before this pack, because they came faster than its buffer drains."""


LogLevel = Literal["debug", "info", "warning", "error"]


class LogLine(Message):
    time_ms: int
    level: LogLevel = "info"
    text: str = Field(max_length=8192)


class Logs(Message):
    """Kind `logs`: lines of a runner, cut to 8,192 characters each, at most 1,000 in an entry."""

    attempt_id: int
    source: str
    lines: list[LogLine]
    dropped: int = 0


class RunReport(Message):
    """Kind `report`: something happened to what a node runs. The state machine of the job turns on these."""

    attempt_id: int
    kind: Literal["started", "progress", "finished", "failed", "refused", "released", "model_kept"]
    """started: the runner trains. progress: a client is still at its round and has come further. finished: all ranks ended well. failed: it broke (`text` says how). refused: the
    node's policy or data forbids it. released: nothing of the attempt runs on the node any more. model_kept: the final
    model lies on the node."""
    round: int | None = None
    text: str = Field(default="", max_length=2000)
    """A sentence for the person who reads the job's page. Tracebacks go to the logs."""


STREAM_KINDS: dict[str, type[Message]] = {
    "heartbeat": Heartbeat,
    "points": Points,
    "logs": Logs,
    "report": RunReport,
}


# --- agent to server: HTTP, under /node/v1/ with the node's secret as bearer (enrolment: the token in the body) -------


class EnrolRequest(Message):
    """POST /node/v1/enrol -> EnrolResponse, or 403 with a sentence."""

    token: str
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    facts: Facts


class EnrolResponse(Message):
    node_id: str
    secret: str
    """Shown this once. It opens the HTTP interface (bearer) and, once approved, the broker."""


class NodeStatus(Message):
    """GET /node/v1/me: the agent asks until it is approved."""

    state: Literal["pending", "offline", "online", "revoked"]
    name: str
    broker_url: str | None = None
    """redis:// or rediss:// URL without credentials; None until approved. The user is `node-<id>`, the password the secret."""


class UpdateOffer(Message):
    """POST /node/v1/attempts/<id>/rounds/<n>/update, after the blob was sent -> Verdict."""

    digest: Digest
    num_examples: int
    metrics: dict[str, float] = {}
    """Means over the client's rows; the server weights them. global/*: the round's incoming weights on the test rows.
    train/*: the last local epoch, each batch before its step. test/*: the trained weights on the test rows."""
    seconds_training: float = 0.0
    """Time of local training alone; the rest of the round is overhead."""
    num_steps: int = Field(default=0, ge=0)
    """Optimizer steps of the round: FedNova divides by their effect."""
    loss_before: float | None = None
    """Mean loss of the incoming weights on the training rows, where the strategy weighs by it (q-FedAvg)."""
    bytes_down: int = Field(default=0, ge=0)
    """What the node fetched for the round; 0 where it mapped the server's own files."""
    label_counts: dict[str, int] | None = None
    """Training rows of each class, where the node's policy shares them."""
    num_saturated: int | None = Field(default=None, ge=0)
    """Secure aggregation: parameters whose change was cut to the clip."""
    epsilon: float | None = Field(default=None, ge=0)
    """Local privacy: what this job has spent of this client's rows so far, at the spec's delta."""


class ArtifactOffer(Message):
    """POST /node/v1/attempts/<id>/artifacts, after the blob was sent -> Verdict."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    digest: Digest


class Verdict(Message):
    accepted: bool
    reason: str = ""
    missing_bytes: bool = False
    """The blobs that the request names are not there, or not any more: deliver them and ask again."""


class Rendezvous(Message):
    """PUT /node/v1/attempts/<id>/rendezvous by group rank 0; the others GET it (404 until it is there)."""

    address: Line
    port: int = Field(ge=1, le=65535)

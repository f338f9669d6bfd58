"""What the agent and its runners say to each other over the pipe: one JSON object a message, never a pickled one.

A message from a runner may carry bytes: they follow the JSON after a newline, which JSON itself never contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.data.source import Source
from trainer.federated.result import ClientResult
from trainer.protocol import Points
from trainer.simulation.plan import RoundPack, SimulationPlan
from trainer.spec import JobSpec


class Said(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")  # a loss may diverge


# --- agent to runner --------------------------------------------------------------------------------------------------


class ClientWork(Said):
    """Be one client of a federated job, and wait for rounds."""

    kind: Literal["client"] = "client"
    attempt_id: int
    spec: JobSpec
    source: Source
    log_source: str
    """Name of the series: the node's name."""
    client: int
    num_clients: int
    threads: int
    kept: Path
    """Folder of what the clients of this job keep from round to round."""
    share_label_counts: bool = False
    share_metrics: bool = True
    """Whether the client says what it measures. Where not, nothing leaves the runner but the update, counts of rows and times."""
    environment: dict[str, str] = {}


class RankWork(Said):
    """Be one rank of a distributed job, from the first step to the last."""

    kind: Literal["rank"] = "rank"
    attempt_id: int
    spec: JobSpec
    source: Source
    log_source: str
    model_path: Path
    """Where rank 0 leaves the model."""
    threads: int
    environment: dict[str, str]
    """RANK, WORLD_SIZE, MASTER_ADDR and their like, as torch elastic documents them."""
    simulation: SimulationPlan | None = None
    """Of a simulation; its rank 0 leaves no model, but packs of rounds."""


Work = Annotated[ClientWork | RankWork, Field(discriminator="kind")]
WORK: TypeAdapter[ClientWork | RankWork] = TypeAdapter(Work)


class TrainCommand(Said):
    """Train one round from the weights in a file; leave the update in another."""

    round: int
    weights: Path
    memory: Path | None = None
    """What the strategy remembers, where clients need it."""
    evaluate: bool = True
    counted_round: int = 0
    """The client's last round whose update counted: it goes on from what it kept of that one."""
    update: Path


# --- runner to agent --------------------------------------------------------------------------------------------------


class Ready(Said):
    """Data and model are loaded (client), or the training begins (rank)."""

    kind: Literal["ready"] = "ready"
    num_rows: int | None = None
    """Rows that the client trains on."""


class Packed(Said):
    """Metric values; the arrays follow as bytes."""

    kind: Literal["points"] = "points"
    head: Points


class Progressed(Said):
    """The round is not done, and has come further."""

    kind: Literal["progressed"] = "progressed"


class RoundDone(ClientResult):
    """The update lies in its file."""

    kind: Literal["round_done"] = "round_done"
    round: int


class RoundsDone(RoundPack):
    """Rank 0 of a simulation has closed these rounds."""

    kind: Literal["rounds_done"] = "rounds_done"


class AllDone(Said):
    """The rank has taken its last step."""

    kind: Literal["all_done"] = "all_done"


class Broke(Said):
    """The training failed; the traceback is in the log."""

    kind: Literal["broke"] = "broke"
    text: str
    lost_peer: bool = False
    """The failure is that another rank went away: its own node knows why."""


AnyAnswer = Ready | Packed | Progressed | RoundDone | RoundsDone | AllDone | Broke
ANSWER: TypeAdapter[AnyAnswer] = TypeAdapter(Annotated[AnyAnswer, Field(discriminator="kind")])


def pack(answer: BaseModel, data: bytes = b"") -> bytes:
    return answer.model_dump_json().encode() + (b"\n" + data if data else b"")


def unpack(frame: bytes) -> tuple[AnyAnswer, bytes]:
    head, _, data = frame.partition(b"\n")
    return ANSWER.validate_json(head), data

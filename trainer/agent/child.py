"""One runner, from inside: a process group of its own that trains, talks over a pipe, and dies with its agent."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import NoReturn

from trainer.agent.pace import PROGRESS_SECONDS, Pace
from trainer.agent.work import (
    WORK,
    AllDone,
    Broke,
    ClientWork,
    Packed,
    Progressed,
    RankWork,
    Ready,
    RoundDone,
    RoundsDone,
    TrainCommand,
    pack,
)
from trainer.data.source import SourceError
from trainer.protocol import Points
from trainer.simulation.plan import RoundPack, SimulationFailed

# What torch and gloo say when the other side of a collective is gone.
_LOST_PEER = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "timed out")


def main(raw_work: bytes, pipe: Connection, output: Connection) -> None:
    """Run the work. Called in a new child of the forkserver; never returns to it with an exception."""
    os.setsid()
    _die_with_the_agent()
    _write_to(output)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the agent
    sender = _Sender(pipe)
    try:
        work = WORK.validate_json(raw_work)
        os.environ.update(work.environment)
        import torch

        torch.set_num_threads(work.threads)
        match work:
            case ClientWork():
                _be_client(work, pipe, sender)
            case RankWork():
                _be_rank(work, sender)
    except (SourceError, SimulationFailed) as error:
        _fail(sender, str(error))
    except Exception as error:
        traceback.print_exc()
        what = " ".join(str(error).split())[:600]
        lost = work.kind == "rank" and any(words in what.lower() for words in _LOST_PEER)
        _fail(sender, f"The training broke with {type(error).__name__}: {what}", lost_peer=lost)


def _be_client(work: ClientWork, pipe: Connection, sender: _Sender) -> None:
    from trainer.federated.client import FederatedClient
    from trainer.federated.kept import ClientFiles
    from trainer.telemetry import MetricLog

    pace = Pace(PROGRESS_SECONDS)

    def say_progress() -> None:
        if pace.is_time():
            sender.send(pack(Progressed()))

    with MetricLog(work.attempt_id, work.log_source, sender.points) as log:
        client = FederatedClient(
            work.spec,
            work.source,
            work.client,
            work.num_clients,
            log,
            files=ClientFiles(work.kept, work.client),
            share_label_counts=work.share_label_counts,
            share_metrics=work.share_metrics,
            on_progress=say_progress,
        )
        sender.send(pack(Ready(num_rows=client.num_rows)))
        while True:
            command = TrainCommand.model_validate_json(pipe.recv_bytes())
            pace = Pace(PROGRESS_SECONDS)
            result = client.train_round(
                command.round,
                command.weights,
                command.update,
                memory_path=command.memory,
                evaluate=command.evaluate,
                counted_round=command.counted_round,
            )
            log.flush()  # the curves go ahead of the update that may close the round and end the job
            sender.send(pack(RoundDone(round=command.round, **result.model_dump())))


def _be_rank(work: RankWork, sender: _Sender) -> None:
    from trainer.distributed.ddp import train_rank
    from trainer.telemetry import MetricLog

    if work.simulation:
        _be_simulated(work, sender)
        return
    with MetricLog(work.attempt_id, work.log_source, sender.points) as log:
        sender.send(pack(Ready()))
        train_rank(work.spec, work.source, log, work.model_path)
    sender.send(pack(AllDone()))


def _be_simulated(work: RankWork, sender: _Sender) -> None:
    from trainer.simulation.rank import simulate
    from trainer.telemetry import MetricLog

    def open_log(source: str) -> MetricLog:
        return MetricLog(work.attempt_id, source, sender.points)

    def post(pack_: RoundPack) -> None:
        sender.send(pack(RoundsDone(**dict(pack_))))

    assert work.simulation is not None
    sender.send(pack(Ready()))
    simulate(work.spec, work.source, work.simulation, open_log, post)
    sender.send(pack(AllDone()))


class _Sender:
    """The pipe's one way out, shared by the training and the log's thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, frame: bytes) -> None:
        with self._lock:
            self._pipe.send_bytes(frame)

    def points(self, head: Points, data: bytes) -> None:
        self.send(pack(Packed(head=head), data))


def _fail(sender: _Sender, text: str, *, lost_peer: bool = False) -> NoReturn:
    sys.stderr.flush()
    sender.send(pack(Broke(text=text, lost_peer=lost_peer)))
    sys.exit(1)


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    """On SIGTERM: unwind, so that the metrics that wait are still sent."""
    sys.exit(0)


def _write_to(output: Connection) -> None:
    """Let everything that is printed, by Python or below it, go to the agent."""
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    # New streams: the old ones remember what kind of file they wrote to.
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)
    faulthandler.enable()


def _die_with_the_agent() -> None:
    """Kill this process group when the agent is gone, however it ended.

    PR_SET_PDEATHSIG would not do: it refers to the forkserver, which lives as long as any of its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()

"""One runner, seen from the agent: a process group with a pipe, an output that becomes log lines, and an end with a reason."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

from trainer.agent import child, forge
from trainer.agent.console import Console
from trainer.agent.sweep import note_process, signal_group
from trainer.agent.work import (
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
    unpack,
)
from trainer.message import Message
from trainer.protocol import Logs

logger = logging.getLogger(__name__)

GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""
LOG_SECONDS = 0.25
"""Lines are gathered for this long, so that a chatty runner sends ten entries a second at most."""
READ_BYTES = 1 << 16
LARGEST_FRAME = 64 << 20


class RunnerEnded(Exception):
    """The runner is gone; the message is a sentence that says how."""


class Runner:
    """A started runner. One thread reads all that it says; `post` takes its metrics and logs and must not block."""

    def __init__(
        self,
        work: ClientWork | RankWork,
        folder: Path,
        post: Callable[[Message, bytes], None],
        on_ready: Callable[[], None] = lambda: None,
        on_rounds: Callable[[RoundsDone], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._post = post
        self._on_ready = on_ready
        self._on_rounds = on_rounds
        self._on_progress: Callable[[], None] = lambda: None
        self._console = Console()
        self._lines_sent_at = 0.0
        self._answers: queue.SimpleQueue[RoundDone | None] = queue.SimpleQueue()
        self._num_rows: int | None = None
        self._loaded = threading.Event()
        self.was_stopped = False
        self.broke: Broke | None = None
        self.all_done = False
        self.ended = threading.Event()

        self._pipe, theirs = forge.context.Pipe()
        self._output, out = forge.context.Pipe(duplex=False)
        raw_work = work.model_dump_json().encode()
        self._process = forge.start(child.main, (raw_work, theirs, out), f"attempt-{work.attempt_id}")
        theirs.close()
        out.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self._note = note_process(folder, self.pid)
        os.set_blocking(self._output.fileno(), False)
        self._thread = threading.Thread(target=self._listen, name=f"runner-{self.pid}", daemon=True)
        self._thread.start()

    # --- what the agent asks ------------------------------------------------------------------------------------------

    def train_round(self, command: TrainCommand, on_progress: Callable[[], None] = lambda: None) -> RoundDone:
        """Return when the round is trained. Meanwhile `on_progress` is called, now and then, by another thread.

        Raises RunnerEnded.
        """
        self._on_progress = on_progress
        with contextlib.suppress(OSError):  # it is gone: the answer below says so
            self._pipe.send_bytes(command.model_dump_json().encode())
        while True:
            answer = self._answers.get()
            if answer is None:
                raise RunnerEnded(self.reason)
            if answer.round == command.round:
                return answer

    def num_rows(self) -> int:
        """Return how many rows the client trains on; waits until its data are loaded. Raises RunnerEnded."""
        self._loaded.wait()
        if self._num_rows is None:
            raise RunnerEnded(self.reason)
        return self._num_rows

    def stop(self) -> None:
        """End the runner and everything that it started: SIGTERM, a pause, SIGKILL. Returns when nothing is left."""
        self.was_stopped = True
        if not self.ended.is_set():
            self._signal(signal.SIGTERM)
            if not self.ended.wait(GRACE_SECONDS):
                self._signal(signal.SIGKILL)
                if not self.ended.wait(GRACE_SECONDS):
                    logger.error("Process %d survived SIGKILL: it hangs inside the kernel.", self.pid)

    @property
    def reason(self) -> str:
        """How the runner ended, as a sentence."""
        if self.was_stopped:
            return "The runner was stopped."
        if self.broke:
            return self.broke.text
        code = forge.exit_code(self._process)
        if code is None:
            return "The runner closed its pipe."
        if code < 0:
            name = signal.Signals(-code).name
            hint = " The machine may have run out of memory." if -code == signal.SIGKILL else ""
            return f"The runner was ended by signal {-code} ({name}).{hint}"
        return f"The runner ended by itself with exit code {code}."

    def _signal(self, signum: signal.Signals) -> None:
        # In its first milliseconds the child leads no group yet.
        if not signal_group(self.pid, signum) and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    # --- what the runner says -----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        sources: list[Connection | int] = [self._pipe, self._output, self._process.sentinel]
        try:
            while forge.exit_code(self._process) is None:
                waiting = self._console.pending
                for ready in wait(sources, LOG_SECONDS if waiting else None):
                    if ready is self._pipe and not self._read_pipe():
                        sources.remove(self._pipe)
                    elif ready is self._output and not self._read_output():
                        sources.remove(self._output)
                self._send_lines()
        finally:
            self._finish()

    def _finish(self) -> None:
        """The leader is gone: end what it started, take its last words, and tell who waits."""
        signal_group(self.pid, signal.SIGKILL)
        while self._pipe.poll() and self._read_pipe():
            pass
        while self._read_output():
            pass
        self._console.close()
        if not (self.was_stopped or self.broke or self.all_done):
            self._console.say(self.reason)
        self._send_lines(now=True)
        self._pipe.close()
        self._output.close()
        if self._note:
            self._note.unlink(missing_ok=True)
        self.ended.set()
        self._loaded.set()
        self._answers.put(None)

    def _read_pipe(self) -> bool:
        """Take one message. Returns False when there will be no more."""
        try:
            answer, data = unpack(self._pipe.recv_bytes(LARGEST_FRAME))
        except (EOFError, OSError):
            return False
        match answer:
            case Packed():
                self._post(answer.head, data)
            case Progressed():
                self._on_progress()
            case RoundDone():
                self._answers.put(answer)
            case RoundsDone():
                self._on_rounds(answer)
            case Broke():
                self.broke = answer
            case AllDone():
                self.all_done = True
            case Ready():
                self._num_rows = answer.num_rows
                self._loaded.set()
                self._on_ready()
        return True

    def _read_output(self) -> bool:
        """Take what the runner has printed. Returns False when there is nothing (more)."""
        try:
            data = os.read(self._output.fileno(), READ_BYTES)
        except OSError:  # nothing there at the moment
            return False
        self._console.feed(data)
        return bool(data)

    def _send_lines(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._lines_sent_at < LOG_SECONDS:
            return
        lines, dropped = self._console.take()
        if lines or dropped:
            self._lines_sent_at = time.monotonic()
            work = self._work
            self._post(Logs(attempt_id=work.attempt_id, source=work.log_source, lines=lines, dropped=dropped), b"")

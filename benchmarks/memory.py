"""The peak memory of processes and all that they start."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

EVERY_SECONDS = 0.2
"""Often enough for what lasts a round; reading one process's maps takes milliseconds."""


class PeakMemory:
    """While entered, samples the memory of the processes `pids` and their descendants; `peak_bytes` is the largest sum.

    A page that several processes share (libraries, mapped files, what a fork left alike) counts once: the proportional set size.
    """

    def __init__(self, *pids: int) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, memory_of(self._roots))
            if self._ended.wait(EVERY_SECONDS):
                return


def memory_of(roots: list[psutil.Process]) -> int:
    """Return the memory of the processes and their descendants, shared pages once."""
    total = 0
    for process in roots:
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        for member in family:
            try:
                total += member.memory_full_info().pss
            except psutil.Error:
                continue  # it ended while we looked
    return total

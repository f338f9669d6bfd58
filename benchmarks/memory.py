"""The peak memory of processes and all that they start."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil

EVERY_SECONDS = 0.2
"""Often enough for what lasts a round; reading one process's maps takes milliseconds."""


class PeakMemory:
    """While entered, samples the memory of the processes `pids` and their descendants; the peaks are the largest sums.

    A page that several processes share (libraries, mapped files, what a fork left alike) counts once: the proportional set size.
    """

    peak_bytes = 0
    peak_own_bytes = 0
    """Without pages of mapped files, which the system takes back when it needs them."""

    def __init__(self, *pids: int) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

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
            everything, own = memory_of(self._roots)
            self.peak_bytes, self.peak_own_bytes = max(self.peak_bytes, everything), max(self.peak_own_bytes, own)
            if self._ended.wait(EVERY_SECONDS):
                return


def memory_of(roots: list[psutil.Process]) -> tuple[int, int]:
    """Return the memory of the processes and their descendants in bytes, shared pages once: with and without mapped files'."""
    everything = own = 0
    for process in roots:
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        for member in family:
            try:
                lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()[1:]
            except OSError:
                continue  # it ended while we looked
            sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}
            everything += sizes.get("Pss:", 0)
            own += sizes.get("Pss:", 0) - sizes.get("Pss_File:", 0)
    return everything, own

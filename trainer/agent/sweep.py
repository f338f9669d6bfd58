"""Process groups: their end, and what an agent that was killed left behind.

A runner notes its leader in `runs/<attempt>/pid-<pid>`, with the process's start time, so that a number that was given
anew to somebody else's process is never mistaken for it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

KEPT_DAYS = 30
"""Without a round for this long, a job is not coming back: what its clients kept is removed."""


def note_process(folder: Path, pid: int) -> Path | None:
    """Write down that `pid` leads a process group of ours; None when it has ended already."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    note = folder / f"pid-{pid}"
    note.write_text(str(started))
    return note


def signal_group(pid: int, signum: signal.Signals) -> bool:
    """Signal the process group that `pid` leads. Returns False when nobody is left in it."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        return False
    except PermissionError:  # only zombies are left, waiting for their parent
        return False
    return True


def sweep_runs(runs: Path) -> int:
    """Kill what is left of earlier runs and remove their files. Returns how many process groups were still there."""
    found = 0
    for note in runs.glob("*/pid-*"):
        pid = int(note.name.removeprefix("pid-"))
        try:
            same = abs(psutil.Process(pid).create_time() - float(note.read_text())) < 0.05
        except (psutil.NoSuchProcess, ValueError):
            same = False
        if same and signal_group(pid, signal.SIGKILL):
            found += 1
            logger.warning("Process group %d was left behind by an earlier agent, and was ended.", pid)
    for folder in runs.iterdir():
        shutil.rmtree(folder, ignore_errors=True)
    return found


def sweep_state(state: Path) -> None:
    """Remove what clients kept for jobs that had no round in a long time. Such a job may still be given more rounds."""
    oldest = time.time() - KEPT_DAYS * 86_400
    for folder in state.iterdir():
        # A folder's time is that of the last file that was put into it; virtual clients have folders of their own inside.
        if max(path.stat().st_mtime for path in (folder, *folder.glob("*/"))) < oldest:
            shutil.rmtree(folder, ignore_errors=True)

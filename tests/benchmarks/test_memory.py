"""The peak is that of a process and all that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.memory import PeakMemory

MEGABYTES = 200
CHILD = f"import sys; held = b'x' * {MEGABYTES * 10**6}; print('held', flush=True); sys.stdin.read()"


def test_a_child_counts():
    with PeakMemory(os.getpid()) as alone:
        pass
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"held\n"
        with PeakMemory(os.getpid()) as both:
            pass
        child.communicate()
    assert alone.peak_bytes > 0
    assert both.peak_bytes > MEGABYTES * 10**6
    assert both.peak_bytes - alone.peak_bytes > MEGABYTES * 10**6 * 0.9


def test_one_that_ended_counts_nothing():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        memory = PeakMemory(child.pid)
        child.communicate(b"\n")
    with memory:
        pass
    assert memory.peak_bytes == 0

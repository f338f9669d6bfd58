"""A runner's inside that does not train but misbehaves, as `RUNNER_DOES` in its environment says. Run by test_runner.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection

from trainer.agent import child
from trainer.agent.work import WORK


def main(raw_work: bytes, pipe: Connection, output: Connection) -> None:
    os.setsid()
    child._die_with_the_agent()
    child._write_to(output)
    match WORK.validate_json(raw_work).environment["RUNNER_DOES"]:
        case "print":
            print("hello")
            print("careful", file=sys.stderr)
            os.write(1, b"from below Python\n")
        case "flood":
            for _ in range(200):
                os.write(1, b"noise\n" * 5000)
        case "long line":
            os.write(1, b"x" * 10_000_000 + b"\n")
            print("after")
        case "ignore TERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # A child of its own, in the same group, as a data loader would be.
            subprocess.Popen([sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"])
            time.sleep(60)
        case "exit":
            sys.exit(3)

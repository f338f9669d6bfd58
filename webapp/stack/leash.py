"""Replace this process by a command that dies with the supervisor, even when that is killed with -9.

    python -m webapp.stack.leash SUPERVISOR_PID COMMAND...

supervisord itself stops its children in good order, but not when it is killed. Linux can: PR_SET_PDEATHSIG survives exec.
What a child of ours starts in turn (an agent's runners) watches its own parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    supervisor, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        sys.exit(1)  # the supervisor died before the call took effect
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

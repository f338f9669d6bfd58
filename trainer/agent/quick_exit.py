"""Imported last by the forkserver, so that it ends at once when its agent is gone.

Python's own farewell takes a process that has torch imported a second or two, in which it looks like an orphan.
"""

from __future__ import annotations

import atexit
import os

_server = os.getpid()


@atexit.register
def _leave() -> None:
    if os.getpid() == _server:  # the forkserver's children have other plans
        os._exit(0)

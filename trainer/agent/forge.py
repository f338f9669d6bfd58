"""The warm forkserver: it has imported torch and the training code once, so that a runner trains some tens of ms after the call.

It is started with a small environment: a runner holds no credential, and whoever reads its environment finds none.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

import psutil

PRELOAD = [
    "numpy",
    "torch",
    "torch.distributed",
    # Without it the first DDP step imports it: 1.2 to 1.8 s.
    "torch._dynamo",
    "torch.nn.parallel",
    "sklearn.datasets",
    "trainer.agent.child",
    "trainer.distributed.ddp",
    "trainer.federated.client",
    # Opacus, for jobs with local privacy: 0.2 s once, instead of seconds in each such job's first round on a busy machine.
    "trainer.federated.private_local",
    "trainer.simulation.rank",
    "trainer.agent.quick_exit",
]

KEPT_VARIABLES = {
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "PATH",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TRAINMASTER_CA_FILE",
    "TRAINMASTER_NODE_HOME",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
}
KEPT_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_", "COVERAGE_")

context = multiprocessing.get_context("forkserver")

# Two threads that look for the same end of a process would both read its one status: starts, which look after all
# processes, and looks exclude each other.
_lock = threading.Lock()


def scrub_environment(threads: int) -> None:
    """Leave in this process's environment only what a runner may see. Call it before any other thread starts.

    It stays so: a forkserver that dies is started again from this environment.
    """
    for name in list(os.environ):
        if name not in KEPT_VARIABLES and not name.startswith(KEPT_PREFIXES):
            del os.environ[name]
    # Read by OpenMP when it is loaded, which is before a runner could say it.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def warm_up() -> None:
    """Start the forkserver and wait until its first child has run: from then on all imports are done."""
    context.set_forkserver_preload(PRELOAD)
    process = start(_nothing, (), "warm-up")
    process.join()


def end_forkserver() -> None:
    """End the forkserver of this process, if there is one: in the midst of its imports it would notice nothing for seconds."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("multiprocessing.forkserver" in word for word in child.cmdline()):
                child.kill()


def start(target: Callable[..., None], args: tuple[Any, ...], name: str) -> ForkServerProcess:
    """Return a running child of the forkserver."""
    process = context.Process(target=target, args=args, name=name)
    with _lock:
        process.start()
    return process


def exit_code(process: ForkServerProcess) -> int | None:
    """Return the exit code of a process, minus the signal that ended it, or None while it runs."""
    with _lock:
        return process.exitcode


def _nothing() -> None:
    pass

"""What this machine is, and how busy. No torch: versions come from the installed packages' metadata."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import socket
from urllib.parse import urlsplit

import psutil
import pynvml

from trainer.agent.config import Catalogue, NodeConfig
from trainer.protocol import Facts, Gpu


def read_gpus() -> list[Gpu]:
    """Return the GPUs that NVML sees; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    gpus = []
    with contextlib.suppress(pynvml.NVMLError):  # a GPU that falls off the bus must not stop the heartbeat
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            utilisation = 0.0
            with contextlib.suppress(pynvml.NVMLError):  # not every GPU can tell, and it is there all the same
                utilisation = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            gpus.append(
                Gpu(
                    name=name.decode() if isinstance(name, bytes) else name,
                    memory_bytes=int(memory.total),
                    memory_used_bytes=int(memory.used),
                    utilisation_percent=utilisation,
                )
            )
    return gpus


def address_towards(url: str) -> str:
    """Return the local address that this machine uses to reach `url`. Sends nothing."""
    parts = urlsplit(url)
    try:
        target = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)[0]
        with socket.socket(target[0], socket.SOCK_DGRAM) as probe:
            probe.connect(target[4])
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def collect_facts(config: NodeConfig, catalogue: Catalogue, server_url: str, public_key: str) -> Facts:
    """Return what this machine is. `public_key` is that of its signing key. Cheap enough for the start; a heartbeat renews only the GPUs' figures."""
    gpus = read_gpus()
    num_cpus = len(os.sched_getaffinity(0))
    return Facts(
        hostname=socket.gethostname(),
        platform=platform.platform(),
        agent_version=importlib.metadata.version("trainmaster"),
        torch_version=importlib.metadata.version("torch"),
        python_version=platform.python_version(),
        num_cpus=num_cpus,
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
        slots=config.slots or len(gpus) or max(2, num_cpus),
        address=config.address or address_towards(server_url),
        sources=catalogue.declared,
        public_key=public_key,
    )

"""What web processes and agents import must not pull in torch: it costs two seconds and 300 MB a process."""

from __future__ import annotations

import subprocess
import sys

TORCH_FREE = [
    "trainer.spec",
    "trainer.sources",
    "trainer.protocol",
    "trainer.telemetry",
    "trainer.weights",
    "trainer.data.files",
    "trainer.data.partition",
    "trainer.data.source",
    "trainer.federated.aggregate",
    "trainer.federated.check",
    "trainer.federated.strategy",
    "trainer.secure.session",
    "trainer.secure.unmask",
    "trainer.secure.weigh",
    "trainer.agent.masking",
]
WHOLE_ENGINE = ["trainer.federated.client", "trainer.federated.initial", "trainer.distributed.ddp"]


def modules_after(imports: list[str]) -> set[str]:
    code = f"import sys, {', '.join(imports)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_torch_free_modules() -> None:
    assert not modules_after(TORCH_FREE) & {"torch", "sklearn", "scipy", "django", "webapp"}


def test_the_engine_knows_no_web() -> None:
    modules = modules_after(WHOLE_ENGINE)
    assert "torch" in modules
    assert not modules & {"django", "webapp", "celery"}

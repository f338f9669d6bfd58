"""The Celery tasks, and the worker that takes them from the node's own queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from celery import Celery
from celery.worker import WorkController, state
from pydantic import ValidationError

from trainer.agent.supervisor import Supervisor
from trainer.message import Message
from trainer.protocol import ReceiveModel, RunRanks, RunReport, StopAttempt, TrainRound
from trainer.secure.messages import MaskUpdate, ShareKeys, UnmaskRound

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


def register_tasks(app: Celery, supervisor: Supervisor, report: Callable[[RunReport], None]) -> None:
    """Give the application the tasks of `protocol.TASKS`. Each takes one message as JSON."""

    def face(name: str, model: type[M], handle: Callable[[M], None]) -> None:
        def task(raw: dict[str, Any]) -> None:
            try:
                message = model.model_validate(raw)
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(str(part) for part in problem["loc"])
                text = f"This node's agent does not understand the job ({where}: {problem['msg']}): update the agent."
                logger.error("%s: %s", name, text)
                if isinstance(raw, dict) and isinstance(raw.get("attempt_id"), int):
                    number = raw.get("round")
                    report(
                        RunReport(
                            attempt_id=raw["attempt_id"],
                            kind="refused",
                            round=number if isinstance(number, int) else None,
                            text=text[:2000],
                        )
                    )
                return
            handle(message)

        app.task(name=name)(task)

    face("trainer.train_round", TrainRound, supervisor.train_round)
    face("trainer.share_keys", ShareKeys, supervisor.share_keys)
    face("trainer.mask_update", MaskUpdate, supervisor.mask_update)
    face("trainer.unmask_round", UnmaskRound, supervisor.unmask_round)
    face("trainer.run_ranks", RunRanks, supervisor.run_ranks)
    face("trainer.stop_attempt", StopAttempt, supervisor.stop_attempt)
    face("trainer.receive_model", ReceiveModel, supervisor.receive_model)


class TaskWorker:
    """Celery's bare worker in a thread of its own. It sets no signal handlers and prints no banner."""

    def __init__(self, app: Celery, name: str, on_end: Callable[[], None]) -> None:
        self._worker = WorkController(
            app=app,
            hostname=f"agent@{name}",
            loglevel=logging.WARNING,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name="celery-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._worker.start()
        except Exception:
            logger.exception("The Celery worker broke")
        finally:
            self._on_end()

    def stop(self, timeout: float) -> None:
        """Take no more tasks. What is reserved and not begun goes back to the queue."""
        state.should_stop = 0  # type: ignore[assignment]
        self._thread.join(timeout)

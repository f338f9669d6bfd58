"""`python -m trainer.agent [--home HOME]`: run this node until a signal comes.

It is started as a package's `__main__` on purpose: the forkserver's children then do not import it again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

from trainer.agent import forge
from trainer.agent.blobs import BlobStore
from trainer.agent.broker import broker_url_with_credentials, connect, make_celery_app
from trainer.agent.config import Catalogue, load_config, threads_per_runner
from trainer.agent.facts import collect_facts
from trainer.agent.heart import Heart
from trainer.agent.home import AgentError, Home, NotWelcome
from trainer.agent.join import ask_status, join_from_environment, wait_for_approval
from trainer.agent.ledger import Ledger
from trainer.agent.masking import Maskings
from trainer.agent.node import GpuPool, Node
from trainer.agent.outbox import Outbox
from trainer.agent.pins import Pins
from trainer.agent.server import PASSING, Server
from trainer.agent.signing import load_signing_key
from trainer.agent.supervisor import Supervisor
from trainer.agent.sweep import sweep_runs, sweep_state
from trainer.agent.tasks import TaskWorker, register_tasks
from trainer.secure.keys import public_key

logger = logging.getLogger("trainer.agent")

SPARE_THREADS = 8
"""Threads of the worker beyond one for each slot: for stops, models and second deliveries while all slots are at work."""
FAREWELL_SECONDS = 1.0
VITAL_THREADS = ("outbox", "heart")
"""Without them the node would live on unheard, so it ends with them, and a supervisor starts it anew."""
NOT_WELCOME_STATUS = os.EX_CONFIG
"""Exit status of a node that was revoked: starting it again would change nothing."""


def run(home: Home, stop: threading.Event) -> None:
    """Run the node until `stop` is set. Raises AgentError with a sentence."""
    # Step 1: the home is ours alone, and what an agent that was killed left behind is ended.
    home.lock()
    sweep_runs(home.runs)
    sweep_state(home.state)
    config = load_config(home.config_file)
    catalogue = Catalogue(config)

    # Step 2: who we are. The environment holds the join token until here, and the runners never see it.
    identity = home.load_identity() or join_from_environment(home, stop)
    ledger = Ledger(home.ledger, config.budgets, name=identity.name, node_id=identity.node_id)
    ledger.budgets()  # a damaged ledger stops the start, as a mistake in node.toml does
    server = Server(identity.server_url, identity.secret)
    signing_key = load_signing_key(home)
    facts = collect_facts(config, catalogue, identity.server_url, public_key(signing_key))
    forge.scrub_environment(threads_per_runner(facts.slots))
    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()

    # Step 3: into our corner of the broker.
    status = wait_for_approval(server, stop)
    assert status.broker_url  # wait_for_approval returns no other
    broker_url = broker_url_with_credentials(status.broker_url, identity)

    def ask_why() -> None:
        # A broker may have lost its users; only the server says whether this node is revoked.
        with contextlib.suppress(*PASSING):
            ask_status(server)

    outbox = Outbox(lambda: connect(broker_url), identity.node_id, home.next_epoch, ask_why)
    failures = _watch_vital_threads(stop)
    node = Node(
        name=status.name,
        home=home,
        facts=facts,
        catalogue=catalogue,
        server=server,
        blobs=BlobStore(server, home.blobs, identity.node_id, config.shared_blob_dirs),
        outbox=outbox,
        gpus=GpuPool(len(facts.gpus)),
        ledger=ledger,
        maskings=Maskings(
            signing_key,
            node_id=identity.node_id,
            name=status.name,
            pins=Pins(home, status.name),
            server=server,
            tell=outbox.put,
        ),
    )
    supervisor = Supervisor(node, on_change=lambda: heart.beat_now())
    heart = Heart(outbox, uuid.uuid4().hex, facts, lambda: supervisor.attempts, ledger.budgets)
    app = make_celery_app(broker_url, identity, concurrency=facts.slots + SPARE_THREADS)
    register_tasks(app, supervisor, node.report)
    worker = TaskWorker(app, status.name, on_end=stop.set)
    outbox.start()
    heart.start()
    worker.start()
    logger.info("Node %s is up with %d slots, connected to %s.", status.name, facts.slots, identity.server_url)

    # Step 4: until a signal comes. Everything has ended within five seconds.
    stop.wait()
    logger.info("Node %s is going away.", status.name)
    supervisor.shut_down()
    heart.stop()
    outbox.close(FAREWELL_SECONDS)
    worker.stop(FAREWELL_SECONDS)
    for failure in failures:
        if isinstance(failure, AgentError):
            raise failure
        raise AgentError(f"The agent broke with {type(failure).__name__}: {failure}") from failure


def _watch_vital_threads(stop: threading.Event) -> list[BaseException]:
    """Set `stop` when a vital thread ends with an exception. Returns the list in which it will lie."""
    failures: list[BaseException] = []

    def on_exception(args: threading.ExceptHookArgs) -> None:
        is_vital = args.thread is not None and args.thread.name in VITAL_THREADS
        if not (is_vital and isinstance(args.exc_value, AgentError)):
            threading.__excepthook__(args)
        if is_vital and args.exc_value:
            failures.append(args.exc_value)
            stop.set()

    threading.excepthook = on_exception
    return failures


def _warm_up() -> None:
    started = time.monotonic()
    forge.warm_up()
    logger.info("Runners are warm after %.1f s.", time.monotonic() - started)
    # What the agent itself needs for its first job of a kind, so that none waits for the imports: the accountant of local
    # privacy, and torch elastic for distributed jobs.
    import dp_accounting.rdp  # noqa: F401

    import trainer.agent.elastic  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.agent", description="Run this machine as a node.")
    parser.add_argument(
        "--home", type=Path, help="folder of the node (default: $TRAINMASTER_NODE_HOME, ~/.trainmaster)"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for chatty in ("httpx", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    stop = threading.Event()

    def on_signal(_signum: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(1)  # asked twice: at once
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, on_signal)
    status = 0
    try:
        run(Home.from_environment(options.home), stop)
    except AgentError as error:
        print(f"trainmaster: {error}", file=sys.stderr)
        status = NOT_WELCOME_STATUS if isinstance(error, NotWelcome) else 1
    forge.end_forkserver()
    sys.stderr.flush()
    # Not sys.exit: it would wait for threads that sit in a transfer or a rendezvous. All runners have ended.
    os._exit(status)


if __name__ == "__main__":
    main()

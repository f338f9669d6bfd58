"""Secure aggregation on real nodes: what the server stores and receives gives no update away, and a killed node no round."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load

from tests.realstack import ROOT, Stack, digits, wait_for
from tests.stack.recorder import Recorder
from trainer.secure.messages import MaskingTerms
from trainer.secure.quantise import Quantiser

NUM_NODES = 4
CLIP = 4.0


class Nodes:
    """Four agents that reach the server over the recorder, held by this test."""

    def __init__(self, stack: Stack, recorder: Recorder, folder: Path) -> None:
        self._environment = stack.environment | {"TRAINMASTER_JOIN_URL": f"http://127.0.0.1:{recorder.port}"}
        self._folder = folder
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        manage = [sys.executable, str(ROOT / "manage.py"), "createnodetoken"]
        for number in range(1, NUM_NODES + 1):
            token = subprocess.run(manage, env=stack.environment, capture_output=True, check=True).stdout
            home = self.home(number)
            home.mkdir(parents=True)
            (home / "join-token").write_bytes(token)
            self.start(number)

    def home(self, number: int) -> Path:
        return self._folder / f"node-{number}"

    def start(self, number: int) -> None:
        home = self.home(number)
        environment = self._environment | {
            "TRAINMASTER_NODE_HOME": str(home),
            "TRAINMASTER_NODE_NAME": home.name,
            "TRAINMASTER_JOIN_TOKEN_FILE": str(home / "join-token"),
        }
        command = [sys.executable, "-m", "webapp.stack.leash", str(os.getpid())]
        command += [sys.executable, "-m", "trainer.cli", "node", "start"]
        with open(home.with_suffix(".log"), "ab") as log:
            self.agents[number] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_warm(self) -> None:
        """Wait until each can start a runner at once: a masked round does not wait long for one that is slower than the rest."""

        def warm() -> bool:
            logs = [self.home(number).with_suffix(".log").read_text() for number in self.agents]
            return all(log.count(" is up with ") == log.count("Runners are warm") for log in logs)

        wait_for("warm runners", warm, seconds=120)

    def stop(self) -> None:
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            agent.wait(timeout=15)


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this module alone, without local nodes."""
    stack = Stack(tmp_path_factory.mktemp("secure") / "home", num_nodes=0)
    try:
        stack.start()
        wait_for("the greeting", lambda: "is ready" in stack.output)
        stack.cancel_all()
        yield stack
    finally:
        if stack.is_running():
            stack.stop()
        stack.wait_no_process()


@pytest.fixture(scope="module")
def recorder(own_stack: Stack) -> Iterator[Recorder]:
    recorder = Recorder(own_stack.port)
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def joined(own_stack: Stack, recorder: Recorder) -> Iterator[Nodes]:
    nodes = Nodes(own_stack, recorder, own_stack.home / "nodes")
    own_stack.num_nodes = NUM_NODES
    try:
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def nodes(own_stack: Stack, joined: Nodes) -> Nodes:
    """All four online, idle and warm."""
    own_stack.wait_nodes()
    joined.wait_warm()
    return joined


def spec(secure: bool, **federated: Any) -> dict[str, Any]:
    masks = {"secure_aggregation": {"clip": CLIP}} if secure else {}
    return digits(**{"rounds": 1, "clients": {"num": NUM_NODES}, **federated, **masks})


def run(stack: Stack, wanted: dict[str, Any]) -> int:
    job_id = stack.submit(wanted)
    stack.wait_state(job_id, "finished", seconds=120)
    stack.wait_nodes()
    return job_id


def model_of(stack: Stack, job_id: int) -> dict[str, np.ndarray]:
    (artifact,) = stack.get(f"/jobs/{job_id}/artifacts")
    return load(stack.api.get(f"/jobs/{job_id}/artifacts/{artifact['id']}/download").content)


def stored(home: Path) -> bytes:
    """All that the server has on its disk: blobs, the database with its journal, and the broker's log of every write."""
    files = [path for path in home.rglob("*") if path.is_file() and "nodes" not in path.relative_to(home).parts]
    return b"".join(path.read_bytes() for path in files)


def traces_of(values: np.ndarray) -> list[bytes]:
    """Pieces of 48 bytes of a tensor, and as base64 and hexadecimal digits would show them."""
    raw = values.tobytes()
    pieces = [raw[start : start + 48] for start in range(0, len(raw) - 48, max(48, len(raw) // 50 // 4 * 4))]
    telling = [piece for piece in pieces if len(set(piece)) > 20]  # not those of pixels that are always dark
    assert telling
    return [
        form
        for piece in telling
        for form in (piece, piece.hex().encode(), *(base64.b64encode(piece[skip:])[:40] for skip in range(3)))
    ]


def test_the_server_never_holds_an_unmasked_update(own_stack: Stack, recorder: Recorder, nodes: Nodes):
    """The same job twice, plain and masked. What the plain one sends is what the masked one must hide."""
    recorder.forget()
    plain_id = run(own_stack, spec(secure=False))
    plain = [load(body) for body in recorder.uploads()]
    assert len(plain) == NUM_NODES
    name = max(plain[0], key=lambda key: plain[0][key].size)
    traces = [traces_of(update[name]) for update in plain]
    sent = recorder.everything
    assert all(any(trace in sent for trace in each) for each in traces), "the search finds what is there"

    recorder.forget()
    secure_id = run(own_stack, spec(secure=True))
    (round_,) = own_stack.items(f"/jobs/{secure_id}/rounds")
    examples = {p["client"]: p["num_examples"] for p in round_["participations"]}
    terms = MaskingTerms(threshold=3, num_clients=NUM_NODES, max_examples=1797)
    quantiser = Quantiser(terms, CLIP)
    # Step 1: neither an update nor its quantised form is in what came in or was kept.
    quantised = [quantiser.encode(update, share / 1797)[0] for update in plain for share in set(examples.values())]
    given = recorder.everything + stored(own_stack.home)
    for values in [*(update[name] for update in plain), *(update[name] for update in quantised)]:
        assert not any(trace in given for trace in traces_of(values))

    # Step 2: what came in place of an update tells nothing of any: no correlation beyond what chance gives.
    masked = [load(body) for body in recorder.uploads()]
    assert len(masked) == NUM_NODES
    for update in masked:
        assert {values.dtype for values in update.values()} == {np.dtype("uint32")}
        noise = update[name].view(np.int32).astype(np.float64).ravel()
        assert np.std(noise) == pytest.approx(2**32 / np.sqrt(12), rel=0.1), "evenly spread over the ring"
        for other in plain:
            assert abs(np.corrcoef(noise, other[name].ravel())[0, 1]) < 6 / np.sqrt(noise.size)

    # Step 3: and yet the result is the plain one's, to half a step of each client.
    one, other = model_of(own_stack, plain_id), model_of(own_stack, secure_id)
    step = NUM_NODES * 0.5 / quantiser.step * 1797 / sum(examples.values())
    for key in one:
        np.testing.assert_allclose(other[key], one[key], rtol=2e-7, atol=step)
    assert all(p["state"] == "returned" for p in round_["participations"])


def test_a_node_killed_between_its_shares_and_its_update_is_left_out(own_stack: Stack, nodes: Nodes):
    """kill -9 of an agent whose runner is held still: the others unmask their sum without it, and it equals the plain one."""
    long = {"local_epochs": 200}
    job_id = own_stack.submit(spec(secure=True, **long))
    agent = psutil.Process(nodes.agents[4].pid)
    idle = set(agent.children(recursive=True))
    (runner,) = wait_for("the runner of node-4", lambda: set(agent.children(recursive=True)) - idle, seconds=20)
    runner.suspend()

    def others_are_in() -> bool:
        (round_,) = own_stack.items(f"/jobs/{job_id}/rounds")
        states = [p["state"] for p in round_["participations"]]
        assert states[3] == "asked", states
        return states[:3] == ["returned"] * 3

    wait_for("the other updates", others_are_in, seconds=60)
    os.killpg(agent.pid, signal.SIGKILL)
    runner.kill()  # what is held still hears no milder word
    nodes.agents[4].wait(10)
    nodes.start(4)
    own_stack.wait_state(job_id, "finished", seconds=60)
    (round_,) = own_stack.items(f"/jobs/{job_id}/rounds")
    people = round_["participations"]
    assert [p["state"] for p in people] == ["returned"] * 3 + ["lost"]
    assert "were in its memory" in people[3]["state_reason"]
    own_stack.wait_nodes()

    # The plain job whose fourth client has the weight 0 sums the same three.
    shares = [p["num_examples"] for p in people[:3]]
    plain_id = run(own_stack, spec(secure=False, strategy={"name": "fusion", "weights": [*shares, 0]}, **long))
    one, other = model_of(own_stack, plain_id), model_of(own_stack, job_id)
    for key in one:
        np.testing.assert_allclose(other[key], one[key], rtol=1e-6, atol=1e-6)

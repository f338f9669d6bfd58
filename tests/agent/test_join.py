"""Enrolment: by command, by environment, and everything that can be wrong with it, each in a sentence."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.agent.conftest import AgentUnderTest, acl_of, eventually
from tests.agent.far_end import FarEnd
from tests.ports import free_port
from trainer.agent.home import Home


def trainmaster(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trainer.cli", *arguments], capture_output=True, text=True, timeout=60)


def test_join_writes_an_identity_for_its_owner_only(far_end: FarEnd, tmp_path: Path) -> None:
    of_another_server = Home(tmp_path).job_state(1)
    of_another_server.mkdir()
    answer = trainmaster(
        "node", "join", far_end.url, "--token", "tmj_token", "--home", str(tmp_path), "--name", "gpu-7"
    )
    assert answer.returncode == 0, answer.stderr
    assert "gpu-7" in answer.stdout
    identity = Home(tmp_path).load_identity()
    assert identity is not None
    assert (identity.node_id, identity.server_url) == ("id-of-gpu-7", far_end.url)
    assert stat.S_IMODE((tmp_path / "identity.json").stat().st_mode) == 0o600
    assert not of_another_server.exists()


def test_a_used_token_is_refused_in_the_servers_words(far_end: FarEnd, tmp_path: Path) -> None:
    far_end.token = ""
    answer = trainmaster("node", "join", far_end.url, "--token", "tmj_token", "--home", str(tmp_path))
    assert answer.returncode == 1
    assert answer.stderr.strip().endswith("did not take this node: This token was used before: ask for a new one.")


def test_a_home_joins_once(far_end: FarEnd, tmp_path: Path) -> None:
    arguments = ("node", "join", far_end.url, "--token", "tmj_token", "--home", str(tmp_path), "--name", "gpu-7")
    assert trainmaster(*arguments).returncode == 0
    again = trainmaster(*arguments)
    assert again.returncode == 1
    assert "belongs to a node already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["http://127.0.0.1:1"], "Nobody answers at http://127.0.0.1:1"),
        (["train.example.org"], "'train.example.org' is not a web address: it begins with http:// or https://."),
        (["http://127.0.0.1:1", "--name", "Übung"], "The name 'Übung' does not work"),
    ],
)
def test_a_wrong_address_or_name_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    answer = trainmaster("node", "join", *arguments, "--token", "x", "--home", str(tmp_path))
    assert answer.returncode == 1
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr


def test_start_without_an_identity_says_how_to_join(tmp_path: Path) -> None:
    answer = trainmaster("node", "start", "--home", str(tmp_path))
    assert answer.returncode == 1
    assert "run 'trainmaster node join URL --token TOKEN' first" in answer.stderr


def test_start_joins_by_the_environment_and_waits_for_approval(
    far_end: FarEnd, node_broker: redis.Redis, broker_url: str, tmp_path: Path
) -> None:
    agent = AgentUnderTest("id-of-auto", tmp_path / "auto", far_end, node_broker, broker_url)
    token_file = tmp_path / "token"  # written after the start, as by a server that is slower than its node
    far_end.state = "pending"
    agent.spawn(
        TRAINMASTER_JOIN_URL=far_end.url, TRAINMASTER_JOIN_TOKEN_FILE=str(token_file), TRAINMASTER_NODE_NAME="auto"
    )
    try:
        eventually(lambda: "token file" in agent.log.read_text())
        token_file.write_text("tmj_token\n")
        eventually(lambda: "an administrator must approve the node 'auto'" in agent.log.read_text())
        node_broker.execute_command("ACL", "SETUSER", "node-id-of-auto", *acl_of("id-of-auto", "tms_secret"))
        far_end.state = "offline"
        eventually(agent.heartbeats)
    finally:
        agent.stop()
        node_broker.execute_command("ACL", "DELUSER", "node-id-of-auto")


def test_start_waits_for_a_server_that_is_not_up(tmp_path: Path, far_end: FarEnd, node_broker, broker_url) -> None:
    agent = AgentUnderTest("id-of-early", tmp_path / "early", far_end, node_broker, broker_url)
    agent.spawn(TRAINMASTER_JOIN_URL=f"http://127.0.0.1:{free_port()}", TRAINMASTER_JOIN_TOKEN="tmj_token")
    eventually(lambda: "Connection refused" in agent.log.read_text())
    assert agent.process is not None
    assert agent.process.poll() is None
    assert agent.stop() < 5


def test_a_revoked_node_is_told_so(make_agent, far_end: FarEnd) -> None:
    agent = make_agent(start=False)
    far_end.state = "revoked"
    agent.spawn()
    assert agent.process.wait(60) == os.EX_CONFIG
    assert "The node 'node-1' was revoked by an administrator." in agent.log.read_text()


def test_a_node_that_is_revoked_while_it_runs_ends(make_agent, far_end: FarEnd, node_broker) -> None:
    agent = make_agent()
    far_end.state = "revoked"
    node_broker.execute_command("ACL", "DELUSER", f"node-{agent.node_id}")
    assert agent.process.wait(60) == os.EX_CONFIG
    assert "The node 'node-1' was revoked by an administrator." in agent.log.read_text()


def test_a_broker_that_lost_its_users_ends_nobody(make_agent, node_broker) -> None:
    agent = make_agent()
    node_broker.execute_command("ACL", "DELUSER", f"node-{agent.node_id}")
    eventually(lambda: "does not take this node's telemetry" in agent.log.read_text())
    node_broker.execute_command(
        "ACL", "SETUSER", f"node-{agent.node_id}", *acl_of(agent.node_id, f"tms_{agent.node_id}")
    )
    before = len(agent.heartbeats())
    eventually(lambda: len(agent.heartbeats()) > before)
    assert agent.process.poll() is None

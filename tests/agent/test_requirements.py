"""What a node's owner requires of every job, whatever the server asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.agent.jobs import distributed_spec, federated_spec
from tests.agent.test_outbox import FACTS
from trainer.agent.config import Catalogue, NodeConfig
from trainer.agent.home import Home
from trainer.agent.ledger import Ledger
from trainer.agent.node import GpuPool, Node, Refused
from trainer.spec import JobSpec


def node_that_requires(folder: Path, *required: str) -> Node:
    unused = cast(Any, SimpleNamespace())
    catalogue = Catalogue(NodeConfig.model_validate({"require": required}))
    ledger = Ledger(folder / "ledger", (), name="node-1", node_id="id-1")
    return Node("node-1", Home(folder), FACTS, catalogue, unused, unused, unused, GpuPool(0), ledger, unused)


def protected(*names: str) -> JobSpec:
    return federated_spec(
        data={"source": "digits", "scaling": "none"},
        federated={"clients": {"num": 3}, **{name: {} for name in names}},
    )


BOTH = ("secure_aggregation", "local_privacy")


@pytest.mark.parametrize("required", [(), BOTH[:1], BOTH[1:], BOTH])
def test_a_job_with_what_is_required_is_admitted(required: tuple[str, ...], tmp_path: Path) -> None:
    assert node_that_requires(tmp_path, *required).admit(protected(*required)).description.name == "digits"


@pytest.mark.parametrize("name", BOTH)
def test_a_job_without_is_refused_with_what_to_switch_on(name: str, tmp_path: Path) -> None:
    node = node_that_requires(tmp_path, *BOTH)
    words = {"secure_aggregation": "secure aggregation", "local_privacy": "local differential privacy"}
    with pytest.raises(Refused) as refused:
        node.admit(protected(*{*BOTH} - {name}))
    assert str(refused.value) == (
        "node-1 lends 'digits' only to federated jobs with secure aggregation and local differential privacy, as its owner "
        f"requires in node.toml: switch on {words[name]}, or leave this node out."
    )


def test_a_distributed_job_has_neither(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="only to federated jobs with secure aggregation, as its owner requires"):
        node_that_requires(tmp_path, "secure_aggregation").admit(distributed_spec())

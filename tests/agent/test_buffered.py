"""FedBuff asks a client for whichever round is open when it is idle: numbers have gaps, and the runner stays."""

from __future__ import annotations

import time

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec
from tests.agent.test_federated import a_round


def test_rounds_may_be_skipped_and_an_older_one_that_comes_late_is_ignored(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    spec = federated_spec(federated={"strategy": {"name": "fedbuff"}, "clients": {"num": 2}})
    agent.send(a_round(far_end, attempt_id, 1, spec=spec))
    eventually(lambda: len(far_end.updates) == 1)
    first = agent.runners(attempt_id)
    agent.send(a_round(far_end, attempt_id, 7, spec=spec))
    eventually(lambda: len(far_end.updates) == 2)
    agent.send(a_round(far_end, attempt_id, 3, spec=spec))
    agent.send(a_round(far_end, attempt_id, 8, spec=spec))
    eventually(lambda: len(far_end.updates) == 3)
    time.sleep(0.3)
    assert [number for _, number, _ in far_end.updates] == [1, 7, 8]
    assert agent.runners(attempt_id) == first

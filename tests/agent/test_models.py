"""`trainer.receive_model`: the final model of a job stays on every node that took part."""

from __future__ import annotations

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from trainer.message import BlobRef
from trainer.protocol import ReceiveModel, RunReport


def test_the_model_is_kept_and_said(agent: AgentUnderTest, far_end: FarEnd, attempt_id: int) -> None:
    weights = weights_for(federated_spec())
    message = ReceiveModel(job_id=attempt_id, attempt_id=attempt_id, weights=far_end.add_blob(weights))
    agent.send(message)
    (report,) = eventually(lambda: agent.told(RunReport, kind="model_kept", attempt_id=attempt_id))
    file = agent.home / "models" / f"job-{attempt_id}.safetensors"
    assert report.text == str(file)
    assert file.read_bytes() == weights
    # The server offers it anew while the report is on its way: the same file, and said again.
    agent.send(message)
    eventually(lambda: len(agent.told(RunReport, kind="model_kept", attempt_id=attempt_id)) == 2)
    assert [path.name for path in file.parent.glob(f"*job-{attempt_id}.*")] == [file.name]


def test_a_model_that_cannot_be_had_is_not_reported_as_kept(
    agent: AgentUnderTest, far_end: FarEnd, attempt_id: int
) -> None:
    agent.send(ReceiveModel(job_id=attempt_id, attempt_id=attempt_id, weights=BlobRef(digest="0" * 64, size_bytes=1)))
    eventually(
        lambda: f"The model of job {attempt_id} could not be kept: This node does not need" in agent.log.read_text()
    )
    assert not agent.told(RunReport, attempt_id=attempt_id)
    assert not list((agent.home / "models").glob(f"*job-{attempt_id}.*"))

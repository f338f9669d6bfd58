"""Secure aggregation on the node: keys, shares, masks and answers of a real agent, among clients that the test plays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec
from tests.agent.masked import PEERS, TERMS, MaskedJob, Peers, secure_spec
from tests.agent.test_federated import a_round
from trainer.federated.names import VARIATE
from trainer.protocol import LogLine, Logs, RunReport, StopAttempt
from trainer.secure.keys import fingerprint, verify
from trainer.secure.quantise import Quantiser
from trainer.secure.unmask import unmasked_sum
from trainer.weights import write_weights


@pytest.fixture
def peers(agent: AgentUnderTest, far_end: FarEnd) -> Peers:
    return Peers(agent, far_end)


def sum_of(job: MaskedJob, folder: Path, survivors: list[int]) -> dict[str, np.ndarray]:
    """What the server reads when all survivors have answered."""
    updates = {0: job.update(), **job.peers_updates(job.update())}
    paths = {client: folder / f"{client}.safetensors" for client in survivors}
    for client, path in paths.items():
        write_weights(path, updates[client])
    answers = [job.answer(survivors), *(job.sessions[client].answer(survivors) for client in survivors if client)]
    return unmasked_sum(paths, job.roster(), {0, *PEERS}, survivors, answers, TERMS)


def test_the_sum_is_the_update_that_a_plain_job_would_deliver(
    peers: Peers, agent: AgentUnderTest, far_end: FarEnd, attempt_id: int, tmp_path: Path
) -> None:
    agent.send(a_round(far_end, 10_000 + attempt_id, spec=federated_spec(federated={"clients": {"num": 3}})))
    plain = load(far_end.blobs[eventually(lambda: far_end.updates)[0][2]["digest"]])
    num_examples = far_end.updates[0][2]["num_examples"]

    job = peers.begin(attempt_id, num_clients=2)
    verify(job.keys(), attempt_id=attempt_id, round=1)
    job.share()
    job.tell()
    masked = job.update()
    (offer,) = job.offers()
    assert (offer["num_examples"], offer["num_saturated"]) == (num_examples, 0)
    quantiser = Quantiser(TERMS, clip=2.0)
    expected, _ = quantiser.encode(plain, num_examples / TERMS.max_examples)
    assert all((masked[name] != expected[name]).any() for name in expected)
    total = sum_of(job, tmp_path, [0, *PEERS])
    assert total.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(total[name], values)


def test_scaffolds_control_variates_are_masked_too(peers: Peers, attempt_id: int, tmp_path: Path) -> None:
    job = peers.begin(attempt_id, spec=secure_spec(federated={"strategy": {"name": "scaffold"}}))
    job.share()
    job.tell()
    total = sum_of(job, tmp_path, [0, *PEERS])
    names = {name for name in total if not name.startswith(VARIATE)}
    assert total.keys() == names | {VARIATE + name for name in names}
    decoded = Quantiser(TERMS, clip=2.0).decode(total)
    steps = job.offers()[0]["num_steps"]
    for name in names:  # of the first round: c_i - c = -delta / (K * lr), both weighing 1
        np.testing.assert_allclose(decoded[VARIATE + name], -decoded[name] / (steps * 0.1), atol=1e-6)


def test_a_private_update_is_cut_before_it_is_masked(peers: Peers, attempt_id: int, tmp_path: Path) -> None:
    privacy = {"clip": {"name": "fixed", "norm": 0.01}, "noise_multiplier": 1.0, "delta": 1e-5}
    job = peers.begin(attempt_id, spec=secure_spec(federated={"privacy": privacy}))
    job.share()
    job.tell()
    decoded = Quantiser(TERMS, clip=2.0).decode(sum_of(job, tmp_path, [0, *PEERS]))
    norm = np.sqrt(sum((values**2).sum() for values in decoded.values()))
    assert 0.0099 < norm <= 0.01


def test_a_box_that_was_changed_is_a_share_not_held_and_said_in_the_jobs_log(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    job.tell(**{"1": job.sealed_for(0)[2]})
    said = f"The shares of {peers.name(1)} for node-1 in round 1 cannot be opened"
    line = eventually(lambda: lines_with(peers.agent.told(Logs, attempt_id=attempt_id), said))[0]
    assert line.level == "warning"
    job.update()
    assert job.answer([0, *PEERS]).self_masks.keys() == {0, 2}
    assert not peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id)


def test_a_lower_threshold_than_the_job_asks_for_is_refused(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id, spec=secure_spec(federated={"secure_aggregation": {"clip": 2.0, "threshold": 0.67}}))
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert report.text.startswith("The server wants 2 of 3 clients to unmask round 1")
    assert "`federated.secure_aggregation.threshold` of the job it must be 3" in report.text
    assert not job.posted("keys")


def test_a_client_that_was_told_other_terms_is_never_masked_with(peers: Peers, attempt_id: int) -> None:
    """Of all others' updates next to nothing would be left, and the sum would be this client's update."""
    few = TERMS.model_copy(update={"max_examples": 450})
    job = peers.begin(attempt_id, masking=few)
    job.agent.send(job.shown(job.roster()))
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert report.text.startswith(f"{peers.name(1)} was told other things of round 1 than node-1")
    assert not job.posted("shares")


def lines_with(told: list[Logs], text: str) -> list[LogLine]:
    return [line for logs in told for line in logs.lines if line.text.startswith(text)]


def test_a_stop_forgets_the_secrets(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    job.tell()
    job.update()
    peers.agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: peers.agent.told(RunReport, kind="released", attempt_id=attempt_id))
    job.ask([0, *PEERS])
    other = peers.begin(attempt_id + 20_000)  # sent after it, and answered
    other.keys()
    assert not job.posted("unmasking")


def test_a_sum_of_two_is_never_unmasked(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    job.tell()
    # Two would be enough to unmask, and are too few to hide among.
    job.update()
    job.ask([0, 1])
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert "to unmask the sum of 2 clients of round 1, and it must be 3 at least" in report.text
    assert not job.posted("unmasking")


def test_the_node_trains_while_keys_and_shares_go_round(peers: Peers, agent: AgentUnderTest, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.keys()
    eventually(lambda: (agent.home / "runs" / str(attempt_id) / "update-1.safetensors").exists())
    assert not job.offers()
    job.share()
    job.tell()
    eventually(job.offers)


def test_tasks_that_come_twice_are_answered_alike(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.agent.send(job.message)
    job.share()
    job.share()
    eventually(lambda: len(job.posted("shares")) == 2)
    assert job.posted("shares")[0] == job.posted("shares")[1]
    job.tell()
    job.tell()
    job.update()
    job.answer([0, *PEERS])
    job.ask([0, *PEERS])
    eventually(lambda: len(job.posted("unmasking")) == 2)
    assert job.posted("unmasking")[0] == job.posted("unmasking")[1]
    assert not peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id)


def test_a_round_that_has_left_does_not_begin_again(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    job.tell()
    job.update()
    job.agent.send(job.message)
    following = peers.begin(attempt_id, 2)  # sent after it, and answered: so that one has come to nothing
    following.keys()
    assert len(job.posted("keys")) == 1
    assert len(job.offers()) == 1


def test_a_second_set_of_survivors_is_refused(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    job.tell()
    job.update()
    job.answer([0, *PEERS])
    job.ask([0, 1])
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert report.text == "The server asks to unmask round 1 for a second set of clients."
    assert len(job.posted("unmasking")) == 1


def test_a_changed_key_is_refused_until_it_is_forgotten(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    job.tell()
    job.update()
    known, peers.identities[2] = peers.identities[2], Ed25519PrivateKey.generate()
    following = peers.begin(attempt_id, 2)
    old, new = (fingerprint(each.roster()[2].identity) for each in (job, following))
    following.agent.send(following.shown(following.roster()))
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id, round=2))
    assert (
        f"{peers.name(2)} signs with a key that node-1 does not know: its fingerprint is {new}, and was {old}."
        in report.text
    )
    assert report.text.endswith(f"trainmaster node forget {peers.name(2)}")
    assert not following.posted("shares")
    peers.identities[2] = known


def test_the_update_never_leaves_unmasked(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id, masking=None)
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="refused", attempt_id=attempt_id))
    assert "the server wants the update of round 1 of node-1 without masks" in report.text
    assert not job.offers()


def test_an_update_with_nan_is_a_failed_round(peers: Peers, attempt_id: int) -> None:
    spec = secure_spec(data={"source": "diabetes"}, training={"optimizer": {"name": "sgd", "lr": 100}}, local_epochs=20)
    job = peers.begin(attempt_id, spec=spec)
    job.share()
    job.tell()
    (report,) = eventually(lambda: peers.agent.told(RunReport, kind="failed", attempt_id=attempt_id))
    assert "holds NaN or infinite values: lower the learning rate" in report.text
    assert not job.offers()


def test_a_server_that_has_gone_on_without_its_keys_is_believed(peers: Peers, far_end: FarEnd, attempt_id: int) -> None:
    far_end.refused_posts = {"keys": "The round has all its keys."}
    job = peers.begin(attempt_id)
    job.keys()
    eventually(lambda: attempt_id not in peers.agent.heartbeats()[-1].attempts)
    assert not peers.agent.told(RunReport, kind="failed", attempt_id=attempt_id)
    far_end.refused_posts = {}
    following = peers.begin(attempt_id, 2)
    following.share()
    following.tell()
    following.update()


def test_a_newer_round_ends_the_wait_for_an_older_ones_masks(peers: Peers, attempt_id: int) -> None:
    job = peers.begin(attempt_id)
    job.share()
    following = peers.begin(attempt_id, 2)
    following.share()
    following.tell()
    following.update()
    job.tell()  # too late, and of no effect
    assert not job.offers()


def test_an_agent_that_starts_anew_is_out_of_the_round_and_in_the_next(make_agent, far_end: FarEnd) -> None:
    agent = make_agent(start=False)
    agent.start(warm=False)  # keys do not wait for runners
    peers = Peers(agent, far_end)
    job = peers.begin(1)
    roster = job.roster()
    agent.kill()
    agent.start()
    agent.send(job.shown(roster))
    again = peers.begin(1)  # the server asks anew, and is shown other keys, which no roster of the round has
    eventually(lambda: len(job.posted("keys")) == 2)
    assert job.posted("keys")[0]["masking"] != job.posted("keys")[1]["masking"]
    assert job.posted("keys")[0]["identity"] == job.posted("keys")[1]["identity"]
    agent.send(again.shown(roster))
    (report,) = eventually(lambda: agent.told(RunReport, kind="refused", attempt_id=1))
    assert report.text == "The server shows other keys of node-1 for round 1 than node-1 has sent."
    following = peers.begin(1, 2)
    following.share()
    following.tell()
    following.update()
    assert not job.posted("shares")


def test_the_signing_key_is_the_owners_alone_and_told(agent: AgentUnderTest, peers: Peers, attempt_id: int) -> None:
    assert (agent.home / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert agent.heartbeats()[-1].facts.public_key == peers.begin(attempt_id).keys().identity
    assert not [name for name in os.listdir(agent.home) if name.endswith(".new")]

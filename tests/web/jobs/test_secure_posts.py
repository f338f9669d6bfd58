"""The door for keys, shares and answers: each client its own, in its own phase, once; all else changes nothing."""

import json

import pytest

from tests.web.jobs.far_end import FEDERATED, FarNode, spec_with
from tests.web.jobs.secure_end import SECURE, MaskedNode
from tests.web.jobs.test_node_api import call
from trainer.secure.messages import PublicKeys, SealedShares, Unmasking
from webapp.fleet import services as fleet
from webapp.fleet.credentials import hash_secret
from webapp.fleet.models import Node
from webapp.jobs import services
from webapp.jobs.models import Attempt, Job, MaskExchange, Participation, Stray

pytestmark = pytest.mark.django_db(transaction=True)
POSTS = ["keys", "shares", "unmasking"]


@pytest.fixture
def nodes(make_node) -> list[MaskedNode]:
    """Four nodes; the secret of node-1 is tms_1, and so on."""
    made = [MaskedNode(make_node(f"node-{k}"), value=k / 10) for k in range(1, 5)]
    for k, node in enumerate(made, 1):
        Node.objects.filter(pk=node.far.node.pk).update(secret_hash=hash_secret(f"tms_{k}"))
    return made


@pytest.fixture
def started(team, owner, nodes, conductor) -> list[MaskedNode]:
    services.submit_job(team=team, owner=owner, spec=SECURE)
    conductor.work()
    return nodes


def bring_to(post: str, nodes: list[MaskedNode], conductor) -> None:
    """Let the nodes do all that comes before `post`."""
    for _ in range({"keys": 0, "shares": 1, "unmasking": 3}[post]):
        for node in nodes:
            node.do_all()
        conductor.work()


def body_of(post: str, node: MaskedNode) -> dict:
    """What the node would post now."""
    (message,) = node.messages()
    if post == "keys":
        node.begin(message)  # which also posts it: take it back
        MaskExchange.objects.all().delete()
        return json.loads(node.session.public_keys().model_dump_json())
    made = node.session.seal_shares(message.roster) if post == "shares" else node.session.answer(message.survivors)
    return json.loads(made.model_dump_json())


def path(post: str, *, attempt: int = 0, number: int = 1) -> str:
    return f"{Attempt.objects.get().pk + attempt}/rounds/{number}/{post}"


def rows() -> list:
    return list(MaskExchange.objects.order_by("pk").values("participation", "keys", "sealed", "unmasking"))


def strays(k: int) -> int:
    return sum(Stray.objects.filter(node__name=f"node-{k}").values_list("count", flat=True))


@pytest.mark.parametrize("post", POSTS)
def test_the_same_post_twice_counts_once(started, conductor, post):
    bring_to(post, started, conductor)
    body = body_of(post, started[0])
    for _ in range(2):
        answer = call("POST", path(post), "tms_1", body)
        assert (answer.status_code, answer.json()) == (200, {"accepted": True, "reason": "", "missing_bytes": False})
    field = {"keys": "keys", "shares": "sealed", "unmasking": "unmasking"}[post]
    assert MaskExchange.objects.filter(**{f"{field}__isnull": False}).count() == 1
    assert strays(1) == 0


@pytest.mark.parametrize("post", POSTS)
def test_nobody_but_a_known_node_gets_in(started, conductor, post, admin):
    bring_to(post, started, conductor)
    body = body_of(post, started[0])
    before = rows()
    assert call("POST", path(post), "", body).status_code == 401
    assert call("POST", path(post), "tms_wrong", body).status_code == 401
    assert call("POST", path(post), "tms_1", {"client": "x"}).status_code == 422
    fleet.revoke_node(node=started[0].far.node, actor=admin)
    assert call("POST", path(post), "tms_1", body).status_code == 401
    assert rows() == before


@pytest.mark.parametrize("post", POSTS)
def test_another_nodes_post_is_refused(started, conductor, post):
    """Node 2 says what node 1 would: it is client 1, and not client 0. Keys and shares so made end its own part."""
    bring_to(post, started, conductor)
    body = body_of(post, started[0])
    before = rows()
    answer = call("POST", path(post), "tms_2", body).json()
    assert answer == {
        "accepted": False,
        "reason": "node-2 posts for client 0, and is client 1 of round 1.",
        "missing_bytes": False,
    }
    assert rows() == before
    second = Participation.objects.get(assignment__index=1)
    assert second.state == ("returned" if post == "unmasking" else "refused")


@pytest.mark.parametrize("post", POSTS)
def test_a_node_that_was_not_asked_is_refused(started, conductor, post, make_node):
    bring_to(post, started, conductor)
    body = body_of(post, started[0])
    foreign = make_node("node-5")
    Node.objects.filter(pk=foreign.node.pk).update(secret_hash=hash_secret("tms_5"))
    answer = call("POST", path(post), "tms_5", body).json()
    attempt = Attempt.objects.get().pk
    assert answer == {
        "accepted": False,
        "reason": f"node-5 was not asked for round 1 of attempt {attempt}.",
        "missing_bytes": False,
    }
    assert strays(5) == 1


@pytest.mark.parametrize("post", POSTS)
def test_another_attempt_or_round_is_refused_and_counted(started, conductor, post):
    bring_to(post, started, conductor)
    body = body_of(post, started[0])
    before = rows()
    for where in (path(post, attempt=10**6), path(post, number=2), path(post, number=0)):
        answer = call("POST", where, "tms_1", body).json()
        assert not answer["accepted"]
        assert answer["reason"].startswith("node-1 was not asked for round ")
    assert (rows(), strays(1)) == (before, 3)


@pytest.mark.parametrize("post", POSTS)
def test_an_ended_attempt_takes_nothing(started, conductor, post, owner):
    bring_to(post, started, conductor)
    body = body_of(post, started[0])
    where = path(post)
    services.cancel_job(job=Job.objects.get(), actor=owner)
    answer = call("POST", where, "tms_1", body).json()
    assert answer["reason"].endswith("has ended: Cancelled by owner.")
    assert strays(1) == 1


def test_an_old_round_takes_nothing(started, conductor):
    """Round 1 has closed: what a client says again of it is nobody's any more."""
    first = started[0]
    for _ in range(4):
        for node in started:
            node.do_all()
        conductor.work()
    assert Job.objects.get().progress_done == 1
    attempt = first.asked.attempt_id
    where = {"node": first.far.node, "attempt_id": attempt, "round_number": 1}
    keys = services.accept_keys(**where, keys=first.session.public_keys())
    assert keys.reason == "Round 1 went on without the keys of node-1: it takes part again in the next round."
    shares = services.accept_shares(**where, shares=SealedShares(client=0, sealed={}))
    assert shares.reason == "Round 1 does not wait for shares (it is closed)."
    late = services.accept_unmasking(**where, unmasking=Unmasking(client=0, self_masks={}, masking_keys={}))
    assert late.reason == "Round 1 does not wait for answers that unmask its sum (it is closed)."


def test_posts_before_their_time_are_refused(started):
    first = started[0]
    first.do_all()
    shares = services.accept_shares(**first.where(), shares=SealedShares(client=0, sealed={}))
    assert shares.reason == "Round 1 does not wait for shares (it is exchanging keys)."
    first.masked = b"anything"
    assert first.offer().reason == "Round 1 takes no updates yet: it is exchanging keys."
    assert set(Participation.objects.values_list("state", flat=True)) == {"asked"}


def test_a_plain_round_takes_no_keys(team, owner, nodes, conductor):
    services.submit_job(team=team, owner=owner, spec=spec_with(FEDERATED, federated={"clients": {"num": 4}}))
    conductor.work()
    asked = nodes[0].far.asked()
    where = {"node": nodes[0].far.node, "attempt_id": asked.attempt_id, "round_number": 1}
    shares = services.accept_shares(**where, shares=SealedShares(client=0, sealed={}))
    assert shares.reason == "The updates of round 1 are not masked: it takes no shares."


def keys_of(sender: MaskedNode, **changes: object) -> PublicKeys:
    return sender.session.public_keys().model_copy(update=changes)


def test_keys_must_be_signed_by_the_identity_that_the_page_shows(started):
    first, second = started[:2]
    for node in started:
        (message,) = node.messages()
        node.begin(message)
    MaskExchange.objects.all().delete()
    other = MaskedNode(FarNode(first.far.broker, first.far.node), value=0)
    first.far.beat()
    other.begin(first.asked)
    refused = Participation.objects.get(assignment__index=0)
    assert refused.state == "refused"
    assert refused.state_reason.startswith("node-1 signs with the key ")
    assert refused.state_reason.endswith(": restart its agent.")
    forged = keys_of(second, masking=first.session.public_keys().masking)
    verdict = services.accept_keys(**second.where(), keys=forged)
    assert verdict.reason.startswith("The keys of node-2 for round 1 do not carry the signature of its identity")
    in_other_name = keys_of(started[2], node="node-1")
    verdict = services.accept_keys(**started[2].where(), keys=in_other_name)
    assert verdict.reason == "node-3 posts keys in the name of node-1."
    assert not MaskExchange.objects.exists()


def test_shares_must_be_for_each_other_client(started, conductor):
    bring_to("shares", started, conductor)
    body = body_of("shares", started[0])
    del body["sealed"]["3"]
    reason = call("POST", path("shares"), "tms_1", body).json()["reason"]
    assert reason == "node-1 did not share with each other client."
    assert Participation.objects.get(assignment__index=0).state == "refused"


def test_an_answer_must_be_to_what_was_asked(started, conductor):
    """Above all, never both kinds of share of one client."""
    bring_to("unmasking", started, conductor)
    body = body_of("unmasking", started[0])
    greedy = {**body, "masking_keys": {"1": body["self_masks"]["1"]}}
    reason = call("POST", path("unmasking"), "tms_1", greedy).json()["reason"]
    assert reason == "The answer of node-1 is not to what round 1 asked it."
    assert call("POST", path("unmasking"), "tms_1", body).json()["accepted"]


@pytest.mark.parametrize(("num_saturated", "accepted"), [(0, True), (650, True), (651, False), (None, False)])
def test_an_update_says_how_much_of_it_was_cut(started, conductor, num_saturated, accepted):
    """A linear model of digits has 650 parameters."""
    for _ in range(2):
        for node in started:
            node.do_all()
        conductor.work()
    (message,) = started[0].messages()
    started[0].mask(message)
    verdict = started[0].offer(num_saturated)
    assert verdict.accepted is accepted
    first = Participation.objects.get(assignment__index=0)
    assert (first.state, first.num_saturated) == (("returned", num_saturated) if accepted else ("refused", None))


def test_false_steps_under_fednova_are_refused_and_the_others_go_on(team, owner, nodes, conductor):
    """What one says it did is in the weight of all: found at the sum, it would end the job."""
    spec = spec_with(SECURE, federated={"rounds": 1, "strategy": {"name": "fednova"}})
    services.submit_job(team=team, owner=owner, spec=spec)
    conductor.work()
    for _ in range(2):
        for node in nodes:
            node.do_all()
        conductor.work()
    for node in nodes:
        (message,) = node.messages()
        node.mask(message)
    first, *others = nodes
    verdict = first.offer(num_steps=1)
    assert verdict.reason == ("Client 0 says that it made 1 steps on 100 rows, which is fewer than its batches.")
    assert all(node.offer().accepted for node in others)
    conductor.work()
    for node in others:
        node.do_all()
    conductor.work()
    assert Job.objects.get().state == "finished"


def test_keys_on_other_terms_than_were_sent_are_refused(started):
    """All other clients would refuse a round with them in it."""
    (message,) = started[0].messages()
    assert message.masking
    other = message.model_copy(update={"masking": message.masking.model_copy(update={"max_examples": 450})})
    verdict = started[0].begin(other)
    assert verdict.reason == "node-1 signs other terms for round 1 than it was sent: update the node."


def test_an_update_that_is_not_masked_is_refused(started, conductor):
    """A node that sends what it should have hidden, in float32."""
    for _ in range(2):
        for node in started:
            node.do_all()
        conductor.work()
    verdict = started[0].far.deliver(started[0].asked, value=1)
    assert verdict.reason.endswith("has the type F32, not U32.")

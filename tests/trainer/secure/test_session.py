"""What a client refuses: everything that could show a single update, each with a sentence."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.trainer.secure.clients import ATTEMPT, ROUND, random_updates, session, terms
from trainer.secure.keys import BadKeys, signed_bytes, verify
from trainer.secure.messages import PublicKeys
from trainer.secure.session import MaskingSession, NotSafe

Roster = list[PublicKeys]


def flipped(text: str, at: int = 20) -> str:
    """Base64 with one bit of the bytes changed."""
    raw = bytearray(b64decode(text))
    raw[at] ^= 1
    return b64encode(raw).decode()


def three() -> tuple[MaskingSession, Roster]:
    """The session of client 0, and the keys of three clients."""
    sessions = [session(client, terms(3)) for client in range(3)]
    return sessions[0], [each.public_keys() for each in sessions]


def with_changed(roster: Roster, of: int, **fields: object) -> Roster:
    return [each.model_copy(update=fields) if each.client == of else each for each in roster]


TAMPERED: list[tuple[str, Callable[[Roster], Roster], str]] = [
    ("forged signature", lambda r: with_changed(r, 1, signature=flipped(r[1].signature)), "node-1 .* do not carry the signature"),
    ("changed identity", lambda r: with_changed(r, 1, identity=session(1, terms(3)).public_keys().identity), "do not carry the sig"),
    ("changed sealing key", lambda r: with_changed(r, 2, sealing=r[1].sealing), "node-2 .* do not carry the signature"),
    ("changed masking key", lambda r: with_changed(r, 2, masking=r[1].masking), "node-2 .* do not carry the signature"),
    ("another client number", lambda r: with_changed(r, 2, client=5), "do not carry the signature"),
    ("another node", lambda r: with_changed(r, 2, node_id="id-9"), "do not carry the signature"),
    ("another name", lambda r: with_changed(r, 2, node="node-9"), "node-9 .* do not carry the signature"),
    ("changed terms", lambda r: with_changed(r, 2, terms_digest="1" * 64), "node-2 .* do not carry the signature"),
    ("other terms", lambda r: [*r[:2], session(2, terms(3), None, "1" * 64).public_keys()], "node-2 was told other things of round 3"),
    ("one name twice", lambda r: with_changed(r, 2, node="node-1"), "have the same name"),
    ("own key replaced", lambda r: [session(0, terms(3)).public_keys(), *r[1:]], "shows other keys of node-0 for round 3"),
    ("own keys missing", lambda r: [*r[1:], session(3, terms(3)).public_keys()], "shows other keys of node-0 for round 3"),
    ("one client twice", lambda r: [*r[:2], r[1]], "Two clients of round 3 have the same client number"),
    ("one node twice", lambda r: [*r[:2], r[1].model_copy(update={"client": 2})], "have the same node"),
    (
        "one identity twice",
        lambda r: [*r[:2], r[1].model_copy(update={"client": 2, "node_id": "id-2"})],
        "have the same identity",
    ),
    ("two clients", lambda r: r[:2], "Round 3 has 2 clients left"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), [case[1:] for case in TAMPERED], ids=[case[0] for case in TAMPERED])
def test_a_roster_that_is_not_what_it_should_be(change: Callable[[Roster], Roster], sentence: str) -> None:
    own, roster = three()
    with pytest.raises((NotSafe, BadKeys), match=sentence):
        own.seal_shares(change(roster))
    assert own.seal_shares(roster).sealed.keys() == {1, 2}  # and nothing was fixed by the refusal


@pytest.mark.parametrize(("num", "threshold"), [(4, 2), (6, 3), (3, 4)])
def test_a_threshold_of_half_or_less_or_more_than_all(num: int, threshold: int) -> None:
    given = terms(max(num, threshold), threshold)
    sessions = [session(client, given) for client in range(num)]
    with pytest.raises(
        NotSafe, match=f"wants {threshold} of {num} clients to unmask round 3: it must be more than half"
    ):
        sessions[0].seal_shares([each.public_keys() for each in sessions])


def test_more_clients_than_the_sum_has_room_for() -> None:
    given = terms(3, 3)
    sessions = [session(client, given) for client in range(4)]
    with pytest.raises(NotSafe, match="shows 4 clients of round 3 and had said 3"):
        sessions[0].seal_shares([each.public_keys() for each in sessions])


def test_keys_are_good_for_their_round_of_their_attempt_alone() -> None:
    keys = session(1, terms(3)).public_keys()
    verify(keys, attempt_id=ATTEMPT, round=ROUND)
    for other in ({"attempt_id": ATTEMPT + 1, "round": ROUND}, {"attempt_id": ATTEMPT, "round": ROUND + 1}):
        with pytest.raises(BadKeys, match=f"The keys of node-1 for round {other['round']} do not carry the signature"):
            verify(keys, **other)


def test_a_key_of_low_order_is_refused() -> None:
    """A point with which any secret agrees to zero."""
    identity = Ed25519PrivateKey.generate()
    own, roster = three()
    broken = broken_keys(identity)
    with pytest.raises(BadKeys, match="The keys of node-2 for round 3 are not usable"):
        own.seal_shares([*roster[:2], broken])


def broken_keys(identity: Ed25519PrivateKey) -> PublicKeys:
    keys = session(2, terms(3), identity).public_keys()
    zero = b64encode(bytes(32)).decode()
    signed = signed_bytes(ATTEMPT, ROUND, 2, keys.node_id, keys.node, keys.sealing, zero, keys.terms_digest)
    signature = identity.sign(signed)
    return keys.model_copy(update={"masking": zero, "signature": b64encode(signature).decode()})


def test_the_same_roster_gives_the_same_shares_and_another_none() -> None:
    own, roster = three()
    first = own.seal_shares(roster)
    assert own.seal_shares(list(reversed(roster))) == first
    other = [*roster[:2], session(2, terms(3)).public_keys()]
    with pytest.raises(NotSafe, match="a second list of clients for round 3"):
        own.seal_shares(other)


def shared(num: int = 5, threshold: int = 3) -> tuple[MaskingSession, dict[int, str]]:
    """Client 0, which has shared, and what the others sealed for it."""
    sessions = [session(client, terms(num, threshold)) for client in range(num)]
    roster = [each.public_keys() for each in sessions]
    boxes = [each.seal_shares(roster).sealed for each in sessions]
    return sessions[0], {client: boxes[client][0] for client in range(1, num)}


@pytest.mark.parametrize("at", [0, 12, 40, -1], ids=["nonce", "first byte", "middle", "tag"])
def test_a_tampered_box_is_a_share_not_held(at: int) -> None:
    own, sealed = shared()
    goes_on_without_node_2(own, {**sealed, 2: flipped(sealed[2], at)})


@pytest.mark.parametrize("box", ["", "AAAA", "A" * 200])
def test_what_is_no_box_is_a_share_not_held(box: str) -> None:
    own, sealed = shared()
    goes_on_without_node_2(own, {**sealed, 2: box})


def test_a_box_of_another_sender_is_a_share_not_held() -> None:
    own, sealed = shared()
    goes_on_without_node_2(own, {**sealed, 2: sealed[1]})


def goes_on_without_node_2(own: MaskingSession, sealed: dict[int, str]) -> None:
    """One bad sender does not put the receiver out of the round: it masks with all five, and answers for the other four."""
    (sentence,) = own.take_shares(sealed)
    assert sentence.startswith("The shares of node-2 for node-0 in round 3 cannot be opened")
    assert own.take_shares(sealed) == []
    own.mask(random_updates(1, 0)[0])
    answer = own.answer([0, 1, 2])
    assert (set(answer.self_masks), set(answer.masking_keys)) == ({0, 1}, {3, 4})


def test_the_own_box_sent_back_is_not_opened() -> None:
    """Both directions have the same key: who sealed for whom is a part of what is authenticated."""
    sessions = [session(client, terms(3)) for client in range(3)]
    roster = [each.public_keys() for each in sessions]
    mine, theirs = sessions[0].seal_shares(roster).sealed, sessions[2].seal_shares(roster).sealed
    (sentence,) = sessions[0].take_shares({1: mine[1], 2: theirs[0]})
    assert sentence.startswith("The shares of node-1 for node-0 in round 3 cannot be opened")


def test_masks_need_enough_clients_that_have_shared() -> None:
    own, sealed = shared(5, 4)
    with pytest.raises(NotSafe, match="Only 3 clients of round 3 have shared, and 4 are needed"):
        own.take_shares({1: sealed[1], 2: sealed[2]})
    own, sealed = shared(3, 2)
    with pytest.raises(NotSafe, match="Only 2 clients of round 3 have shared"):
        own.take_shares({1: sealed[1]})


@pytest.mark.parametrize("stranger", [0, 9])
def test_shares_of_whom_is_not_among_the_others(stranger: int) -> None:
    own, sealed = shared()
    with pytest.raises(NotSafe, match="not among the others of round 3"):
        own.take_shares({**sealed, stranger: sealed[1]})


def test_who_masks_is_said_once() -> None:
    own, sealed = shared()
    own.take_shares(sealed)
    own.take_shares(sealed)
    with pytest.raises(NotSafe, match="sends other shares of round 3 than before"):
        own.take_shares({client: sealed[client] for client in (1, 2, 3)})


def test_steps_out_of_order_are_refused() -> None:
    own, _ = three()
    with pytest.raises(NotSafe, match="shares of round 3 before the round's keys"):
        own.take_shares({})
    with pytest.raises(NotSafe, match="nobody to mask round 3 with"):
        own.mask(random_updates(1, 0)[0])
    with pytest.raises(NotSafe, match="in which its update is not"):
        own.answer([0, 1, 2])


def masked(num: int = 5, threshold: int = 3) -> MaskingSession:
    """Client 0, whose update has left."""
    own, sealed = shared(num, threshold)
    own.take_shares(sealed)
    own.mask(random_updates(1, 0)[0])
    return own


def test_masks_hide_one_update_only() -> None:
    with pytest.raises(NotSafe, match="The masks of round 3 have been used"):
        masked().mask(random_updates(1, 1)[0])


def test_no_client_is_answered_for_with_both_kinds_of_share() -> None:
    own = masked()
    answer = own.answer([0, 1, 3])
    assert answer.self_masks.keys() == {0, 1, 3}
    assert answer.masking_keys.keys() == {2, 4}
    assert own.answer([3, 1, 0]) == answer
    for other in ([0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3, 4]):
        with pytest.raises(NotSafe, match="a second set of clients"):
            own.answer(other)


@pytest.mark.parametrize(
    ("survivors", "sentence"),
    [
        ([0, 1], "the sum of 2 clients of round 3, and it must be 3 at least"),
        ([0], "the sum of 1 clients"),
        ([1, 2, 3], "asks node-0 to unmask round 3, in which its update is not"),
        ([0, 1, 2, 9], "clients of round 3 that have not shared"),
    ],
)
def test_sets_of_survivors_that_are_never_answered(survivors: list[int], sentence: str) -> None:
    own = masked()
    with pytest.raises(NotSafe, match=sentence):
        own.answer(survivors)
    assert own.answer([0, 1, 2]).client == 0


def test_fewer_survivors_than_the_threshold_are_never_answered() -> None:
    with pytest.raises(NotSafe, match="it must be 4 at least"):
        masked(5, 4).answer([0, 1, 2])

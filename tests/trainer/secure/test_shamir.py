"""Shamir's t of n: any t shares give the secret, and t - 1 fit every secret alike."""

from __future__ import annotations

import random
import secrets
from itertools import combinations

import pytest

from trainer.secure.shamir import PRIME, join, split


def test_the_field_is_a_prime_one_above_all_secrets() -> None:
    assert PRIME > 2**256
    # Fermat's test to 50 bases; a composite number that passes it by chance is rarer than a broken machine.
    rng = random.Random(0)
    assert all(pow(rng.randrange(2, PRIME), PRIME - 1, PRIME) == 1 for _ in range(50))


@pytest.mark.parametrize(("threshold", "num"), [(1, 1), (2, 3), (3, 5), (5, 5)])
def test_any_enough_shares_give_the_secret(threshold: int, num: int) -> None:
    for secret in (bytes(32), b"\xff" * 32, secrets.token_bytes(32)):
        shares = split(secret, threshold, range(0, 10 * num, 10))
        for size in range(threshold, num + 1):
            for holders in combinations(shares, size):
                assert join({holder: shares[holder] for holder in holders}, threshold) == secret


def test_one_share_too_few_fits_any_secret() -> None:
    shares = split(secrets.token_bytes(32), 3, range(3))
    known = {holder: shares[holder] for holder in (0, 1)}
    with pytest.raises(ValueError, match="There are 2 shares, and 3 are needed"):
        join(known, 3)
    # With each third share the same two give another secret.
    found = {join({**known, 2: value.to_bytes(33)}, 3) for value in range(40)}
    assert len(found) == 40


def test_shares_of_two_secrets_do_not_belong_together() -> None:
    first, second = (split(secrets.token_bytes(32), 2, range(4)) for _ in range(2))
    with pytest.raises(ValueError, match="do not belong together"):
        join({**first, 3: second[3]}, 2)


@pytest.mark.parametrize("share", [b"", bytes(32), b"\xff" * 33, PRIME.to_bytes(33)])
def test_a_share_is_a_number_of_the_field(share: bytes) -> None:
    with pytest.raises(ValueError, match="not a number of the field"):
        join({0: bytes(33), 1: share}, 2)


@pytest.mark.parametrize(("secret", "threshold", "num"), [(bytes(31), 2, 3), (bytes(33), 2, 3), (bytes(32), 4, 3)])
def test_what_cannot_be_shared(secret: bytes, threshold: int, num: int) -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        split(secret, threshold, range(num))


def test_a_threshold_of_one_hides_nothing_and_more_does() -> None:
    assert set(split(bytes(32), 1, range(3)).values()) == {bytes(33)}
    assert len(set(split(bytes(32), 2, range(3)).values())) == 3

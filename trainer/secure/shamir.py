"""Shamir's secret sharing (Shamir 1979), t of n, of secrets of 32 bytes over the prime field of 2^256 + 297.

Own code, since no kept library on PyPI fits: PyCryptodome's shares 128-bit secrets over GF(2^128) alone. It is a page of
arithmetic; the coefficients come from the operating system.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache

PRIME = 2**256 + 297
"""The least prime above all secrets."""
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, holders: Iterable[int]) -> dict[int, bytes]:
    """Return one share for each holder, of whom any `threshold` can put the secret together and fewer learn nothing of it.

    Holders are numbers from 0 on, none twice. Raises ValueError where the secret is not of 32 bytes, or there are fewer
    holders than `threshold`.
    """
    names = set(holders)
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(names):
        raise ValueError(f"A secret of {len(secret)} bytes cannot be shared {threshold} of {len(names)}.")
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {holder: _value_at(coefficients, holder + 1).to_bytes(SHARE_BYTES) for holder in names}


def _value_at(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of at least `threshold` shares, by holder. More than that must all lie on one polynomial.

    Raises ValueError where there are fewer, or they do not belong together. Exactly `threshold` shares always seem to:
    then only what the secret opens can tell.
    """
    if len(shares) < threshold:
        raise ValueError(f"There are {len(shares)} shares, and {threshold} are needed.")
    values = {holder: int.from_bytes(share) for holder, share in sorted(shares.items())}
    if any(len(share) != SHARE_BYTES for share in shares.values()) or max(values.values()) >= PRIME:
        raise ValueError("A share is not a number of the field.")
    enough = tuple(values)[:threshold]
    secret = _combine(values, _weights(enough, -1))
    if secret >> (8 * SECRET_BYTES) or any(
        _combine(values, _weights(enough, other)) != values[other] for other in tuple(values)[threshold:]
    ):
        raise ValueError("The shares do not belong together.")
    return secret.to_bytes(SECRET_BYTES)


def _combine(values: Mapping[int, int], weights: Mapping[int, int]) -> int:
    return sum(values[holder] * weight for holder, weight in weights.items()) % PRIME


@lru_cache(maxsize=1024)
def _weights(holders: tuple[int, ...], at: int) -> Mapping[int, int]:
    """Return Lagrange's weights of the holders' values in the value at holder `at`; -1 is where the secret lies.

    Cached: a round's secrets are shared among the same clients, and a set of n costs n^2 multiplications.
    """
    weights = {}
    for own in holders:
        above, below = 1, 1
        for other in holders:
            if other != own:
                above = above * (at - other) % PRIME
                below = below * (own - other) % PRIME
        weights[own] = above * pow(below, -1, PRIME) % PRIME
    return weights

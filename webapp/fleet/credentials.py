"""Secrets of the fleet: made once, shown once, kept as SHA-256.

They carry 256 random bits, so a plain hash is enough: there is nothing to guess, and looking a hash up in an index tells a
caller nothing about the secrets that are there.
"""

from __future__ import annotations

import hashlib
import secrets

ENROLMENT_PREFIX = "tmj_"
NODE_PREFIX = "tms_"


def new_secret(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

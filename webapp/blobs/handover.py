"""Blobs of nodes on the server's own machine: left in a folder of the node's, and taken from there without a copy.

Who can write into that folder can write into all blobs: it is one machine and one user, and the node's owner has named the
folder in node.toml. Another node cannot reach it: its name is the node's id, which the secret of the request decides.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from django.conf import settings

from webapp.blobs.services import adopt

_NAME = re.compile(r"[0-9a-f]{32}")


def is_name(text: str) -> bool:
    """Whether a handed over file may be called so; a digest is longer."""
    return _NAME.fullmatch(text) is not None


class TooLarge(Exception):
    """The file has more bytes than a blob may have."""


def take(owner: str, name: str) -> str:
    """Make the file `name` in the folder of the node `owner` a blob, and return its digest.

    Raises FileNotFoundError where there is no such plain file, TooLarge, and OSError where the disk refuses.
    """
    path = Path(settings.BLOB_DIR, "incoming", owner, name)
    facts = os.lstat(path)
    if not stat.S_ISREG(facts.st_mode):  # a link would let the node name any file that the server can read
        raise FileNotFoundError(path)
    if facts.st_size > settings.MAX_BLOB_BYTES:
        path.unlink()
        raise TooLarge
    return adopt(path).digest

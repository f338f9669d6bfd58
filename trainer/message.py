"""What all messages between server, nodes and runners have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
"""32 bytes in base64: an Ed25519 or X25519 public key."""
Sealed = Annotated[str, Field(max_length=1000, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
"""Some encrypted or plain bytes in base64."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a blob's bytes, in hexadecimal."""


class Message(BaseModel):
    """Base of all messages. Unknown fields are ignored, so that a newer server may talk to an older node.

    NaN and infinities are written as such: a loss that diverged must arrive, and pydantic's own choice, null, is no number.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="constants")


class BlobRef(Message):
    """A content-addressed blob. The node gets it at GET /node/v1/blobs/<digest>, or maps it where it may read `path`."""

    digest: Digest
    size_bytes: int = Field(ge=0)
    path: str | None = None
    """Where the blob lies on the server's own machine. A node follows it only into a folder that its node.toml names."""

"""What all pieces of a spec have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen piece of a spec. Unknown fields are errors, so that a misspelt option never trains silently.

    NaN and infinities are errors too: no setting means them, and the database's JSON holds none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

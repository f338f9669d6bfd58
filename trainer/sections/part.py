"""What all pieces of a spec have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Label = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.=-]*$", max_length=63)]
"""A word that administrators put on nodes."""


class Part(BaseModel):
    """A frozen piece of a spec. Unknown fields are errors, so that a misspelt option never trains silently.

    NaN and infinities are errors too: no setting means them, and the database's JSON holds none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

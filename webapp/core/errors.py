"""Errors that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from django.http import Http404


class FieldProblem(TypedDict):
    """One wrong field: where it is, and a sentence that says what to do."""

    loc: list[str | int]
    message: str


class Refusal(Exception):
    """A request that cannot be granted. The text is a sentence for the person: it names the thing and what to do.

    Services raise it; views show it at the form, the API answers 409 (or `status`) with it, and with `errors` where
    single fields are to blame.
    """

    def __init__(self, sentence: str, *, status: int = 409, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.errors = errors


class Missing(Http404):
    """A thing that is not there, or that the person may not see. The text is a sentence that says the same of both."""

"""What is wrong with a parameter or a field of a request, in sentences. pydantic finds the errors; this module says them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from webapp.core.errors import FieldProblem

_SENTENCES = {
    "missing": "'{name}' is missing.",
    "extra_forbidden": "There is no field '{name}' here.",
    "enum": "'{name}' is {expected}.",
    "literal_error": "'{name}' is {expected}.",
    "greater_than_equal": "'{name}' is at least {ge}.",
    "less_than_equal": "'{name}' is at most {le}.",
    "string_too_short": "'{name}' has at least {min_length} characters.",
    "string_too_long": "'{name}' has at most {max_length} characters.",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "'{name}' is a whole number."),
    **dict.fromkeys(("bool_parsing", "bool_type"), "'{name}' is true or false."),
    "string_type": "'{name}' is a text.",
    "dict_type": "'{name}' is an object.",
}


def describe(errors: Sequence[dict[str, Any]]) -> tuple[str, list[FieldProblem]]:
    """Return one sentence about all of pydantic's errors, and each error with its place and a sentence of its own."""
    problems: list[FieldProblem] = [{"loc": _place(e["loc"]), "message": _sentence(e)} for e in errors]
    if len(problems) == 1:
        return problems[0]["message"], problems
    names = dict.fromkeys(".".join(map(str, problem["loc"])) for problem in problems)
    return f"Correct these and send the request again: {', '.join(names)}.", problems


def _sentence(error: dict[str, Any]) -> str:
    name = next((part for part in reversed(error["loc"]) if isinstance(part, str)), "body")
    context = dict(error.get("ctx", {}))
    if "expected" in context:
        context["expected"] = context["expected"].replace("'", "")
    sentence = _SENTENCES.get(error["type"])
    return sentence.format(name=name, **context) if sentence else f"'{name}': {error['msg'].rstrip('.')}."


def _place(loc: tuple[str | int, ...]) -> list[str | int]:
    """Where the error is, as the caller wrote it: without `query` or `body` and without our argument's name."""
    in_a_schema = len(loc) > 2 and isinstance(loc[2], str)
    return list(loc[2:] if in_a_schema else loc[1:] or loc)

"""What is wrong with a spec, in sentences for the person who wrote it, each at its field.

pydantic finds the errors; this module says them. Limits, choices and fields are read from the spec's own JSON schema, so they
are nowhere written twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainer.sections.disagreement import MARK, Disagreement, rooted
from trainer.sources import SpecProblem
from trainer.spec import JobSpec

Loc = tuple[str | int, ...]
Schema = dict[str, Any]

_DISCRIMINATORS = ("name", "scheme")
_PATTERNS = {
    r"^[a-z0-9][a-z0-9_.-]*$": "begins with a small letter or a digit, and goes on with these, '_', '.' or '-'",
    r"^[a-zA-Z0-9][a-zA-Z0-9_.=-]*$": "begins with a letter or a digit, and goes on with these, '_', '.', '=' or '-'",
}


def parse_spec(raw: dict[str, Any]) -> JobSpec | list[SpecProblem]:
    """Return the spec, or every problem that its own limits show."""
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # A list whose entries are wrong is also said to be too short: the entries' own errors say it better.
    places = [detail["loc"] for detail in details]
    return [
        _problem(detail)
        for detail in details
        if not (detail["type"] == "too_short" and any(_is_under(other, detail["loc"]) for other in places))
    ]


def _problem(detail: ErrorDetails) -> SpecProblem:
    loc = _without_tags(detail["loc"])
    schema = _schema_at(detail["loc"])
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        loc = (*loc, detail["ctx"]["discriminator"].strip("'"))
    if detail["type"] == "value_error" and isinstance(error := detail["ctx"]["error"], Disagreement):
        marked = rooted(".".join(map(str, loc)), error.marked)
        return SpecProblem(loc=_named_place(loc, error.marked), message=str(error), marked=marked)
    name = next((part for part in reversed(loc) if isinstance(part, str)), "spec")
    say = _SENTENCES.get(detail["type"])
    return SpecProblem(loc=loc, message=say(name, schema, detail) if say else f"'{name}': {detail['msg']}.")


def _is_under(loc: Loc, parent: Loc) -> bool:
    return len(loc) > len(parent) and loc[: len(parent)] == parent


def _without_tags(loc: Loc) -> Loc:
    """Drop what pydantic adds for the chosen entry of a registry: model.mlp.options becomes model.options."""
    kept: list[str | int] = []
    schema = _resolved(_root())
    for part in loc:
        # By the schema, as a tag may be called like one of its fields: partition.column.column.
        if "discriminator" not in schema:
            kept.append(part)
        schema = _below(schema, part)
    return tuple(kept)


def _named_place(loc: Loc, marked: str) -> Loc:
    """Where to say what a check over several fields of a section found: at the first field that its sentence names."""
    named = next((mark["path"] for mark in MARK.finditer(marked) if not mark["value"]), "")
    return (*loc, *named.split(".")) if named else loc


# --- what the schema says at a place ----------------------------------------------------------------------------------


@cache
def _root() -> Schema:
    return JobSpec.model_json_schema()


def _schema_at(loc: Loc) -> Schema:
    """The JSON schema at a place of the spec, tags included; of an unknown field, that of the section around it."""
    schema = _resolved(_root())
    for part in loc:
        schema = _below(schema, part) or schema
    return schema


def _below(schema: Schema, part: str | int) -> Schema:
    """The JSON schema one step down: an item, a field, or the entry of a tag. Empty where there is none."""
    if isinstance(part, int):
        below = schema.get("items")
    elif "discriminator" in schema:
        below = {"$ref": schema["discriminator"]["mapping"].get(part, "")}
    else:
        below = schema.get("properties", {}).get(part)
    return _resolved(below) if below else {}


def _resolved(schema: Schema) -> Schema:
    """Follow references, and take the only real choice of an optional section."""
    if "$ref" in schema:
        found: Schema = _root()["$defs"].get(schema["$ref"].rpartition("/")[2], {})
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_resolved(found), **own}
    real = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    return _resolved(real[0]) if len(real) == 1 else schema


# --- sentences --------------------------------------------------------------------------------------------------------


def _unknown(name: str, schema: Schema, detail: ErrorDetails) -> str:
    fields = list(schema.get("properties", {}))
    return f"There is no field '{name}' here. {_suggestion(name, fields) or f'There are: {_listed(fields)}.'}"


def _missing(name: str, schema: Schema, detail: ErrorDetails) -> str:
    choices = _choices(schema)
    more = f": choose {_listed(choices, 'or')}" if choices else ""
    return f"'{name}' is missing{more}."


def _choice(name: str, schema: Schema, detail: ErrorDetails) -> str:
    choices = _choices(schema)
    given = detail["ctx"].get("tag", detail["input"])
    close = _suggestion(str(given), choices)
    return f"'{name}' is {_listed(choices, 'or')}, not {_shown(given)}.{f' {close}' if close else ''}"


def _no_choice(name: str, schema: Schema, detail: ErrorDetails) -> str:
    field = detail["ctx"]["discriminator"].strip("'")
    return f"'{field}' is missing: choose {_listed(_choices(schema), 'or')}."


def _number(name: str, schema: Schema, detail: ErrorDetails) -> str:
    kind = "a whole number" if schema.get("type") == "integer" else "a number"
    return f"'{name}' is {kind}{_range(schema)}, not {_shown(detail['input'])}."


def _length(name: str, schema: Schema, detail: ErrorDetails) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    size = f"{least:,} to {most:,}" if most else f"at least {least:,}"
    return f"'{name}' has {size} characters, and this one has {len(detail['input']):,}."


def _count(name: str, schema: Schema, detail: ErrorDetails) -> str:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    size = f"{least:,} to {most:,}" if most else f"at least {least:,}"
    return f"'{name}' has {size} entries, and this one has {detail['ctx']['actual_length']:,}."


def _pattern(name: str, schema: Schema, detail: ErrorDetails) -> str:
    pattern = detail["ctx"]["pattern"]
    return f"'{name}' {_PATTERNS.get(pattern, f'must match {pattern}')}; {_shown(detail['input'])} does not."


def _section(name: str, schema: Schema, detail: ErrorDetails) -> str:
    fields = list(schema.get("properties", {})) or list(_DISCRIMINATORS[:1])
    return f"'{name}' is a section with fields of its own ({_listed(fields)}), not {_shown(detail['input'])}."


def _own_words(name: str, schema: Schema, detail: ErrorDetails) -> str:
    return str(detail["ctx"]["error"])


def _is(kind: str) -> Callable[[str, Schema, ErrorDetails], str]:
    return lambda name, schema, detail: f"'{name}' is {kind}, not {_shown(detail['input'])}."


_SENTENCES: dict[str, Callable[[str, Schema, ErrorDetails], str]] = {
    "extra_forbidden": _unknown,
    "missing": _missing,
    "literal_error": _choice,
    "union_tag_invalid": _choice,
    "union_tag_not_found": _no_choice,
    "string_too_short": _length,
    "string_too_long": _length,
    "too_short": _count,
    "too_long": _count,
    "string_pattern_mismatch": _pattern,
    "value_error": _own_words,
    "string_type": _is("a text"),
    "bool_type": _is("true or false"),
    "bool_parsing": _is("true or false"),
    "tuple_type": _is("a list"),
    "model_type": _section,
    "model_attributes_type": _section,
    **dict.fromkeys(
        (
            *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"),
            *("int_type", "int_parsing", "int_from_float", "int_parsing_size", "float_type", "float_parsing"),
        ),
        _number,
    ),
}


def _range(schema: Schema) -> str:
    """Such as: from 1 to 100,000; or: above 0 and at most 100."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_plain(low)} to {_plain(high)}"
    words = [
        f"{word} {_plain(limit)}"
        for word, limit in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if limit is not None
    ]
    return f" {' and '.join(words)}" if words else ""


def _choices(schema: Schema) -> list[str]:
    if "discriminator" in schema:
        return list(schema["discriminator"]["mapping"])
    return [str(choice) for choice in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def _suggestion(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given[:100], known, n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def _listed(words: Sequence[str], joint: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {joint} {words[-1]}"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"

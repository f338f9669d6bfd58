"""The fields of the New job form, read from the spec: titles, help, limits, defaults and units.

A new option in `trainer/spec.py` is a new field on the page, with nothing to write here. The walk goes over pydantic's own
JSON schema, in which every limit and docstring is already in one place.

Names of inputs are paths in the spec. Under a choice they carry the entry that they belong to, such as
`training.optimizer:sgd.lr`: a learning rate typed for sgd is neither taken for adam's nor lost by looking at adam.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from trainer.spec import JobSpec
from webapp.jobs.form_layout import cut, folded
from webapp.jobs.form_nodes import Choice, Group, Leaf, Node, Path, Section, Toggle
from webapp.jobs.form_words import bare_name, unit_of, word

Schema = dict[str, Any]

ONLY_IN = {"data.partition": "federated"}
"""Fields that mean something in one mode only. The modes' own sections are found by their names."""
WIDGETS = {
    "mode": "segments",
    "data.source": "source",
    "federated.clients.nodes": "nodes",
    "federated.server_data": "server_data",
}
"""Fields that are drawn otherwise than their type says."""


@cache
def sections() -> tuple[Section, ...]:
    """Return the whole form, in the order of the spec."""
    schema = JobSpec.model_json_schema()
    walk = _Walk(schema["$defs"])
    modes = schema["properties"]["mode"]["enum"]
    own: list[Node] = []
    cards: list[Section] = []
    for key, found in schema["properties"].items():
        part = walk.resolve(found)
        only_in = key if key in modes else ""
        if walk.is_choice(part):
            cards.append(Section((key,), _title(key, part), "", (walk.choice((key,), key, part, only_in),), only_in))
        elif "properties" in part:
            nodes = tuple(walk.nodes((key,), key, part))
            whole = Section((key,), _title(key, part, of_class=True), part.get("description", ""), nodes, only_in)
            cards += cut(whole)
        else:
            own.append(walk.leaf((key,), key, part, required=key in schema["required"]))
    return (Section((), "Job", "", tuple(own)), *cards)


class _Walk:
    """Turns parts of a JSON schema into fields."""

    def __init__(self, defs: Schema) -> None:
        self.defs = defs

    def resolve(self, part: Schema) -> Schema:
        """Follow a reference, and look through "this or null". What stands beside the reference wins."""
        beside = {key: value for key, value in part.items() if key not in ("$ref", "anyOf")}
        for option in part.get("anyOf", ()):
            if option.get("type") != "null":
                return {**self.resolve(option), **beside}
        if "$ref" in part:
            return {**self.defs[part["$ref"].rsplit("/", 1)[1]], **beside}
        return part

    def is_choice(self, part: Schema) -> bool:
        """A registry, or one that has a single entry so far."""
        return "discriminator" in part or any("const" in field for field in part.get("properties", {}).values())

    def nodes(self, path: Path, name: str, part: Schema) -> Iterator[Node]:
        """The fields of an object. An entry's options stand beside each other; other objects inside it are groups."""
        for key, found in part["properties"].items():
            field = self.resolve(found)
            below, below_name = (*path, key), f"{name}.{key}"
            if "const" in field:
                continue  # the name of the entry: the choice itself shows it
            if self.is_choice(field):
                title = found.get("title", "")
                yield self.choice(below, below_name, field, ONLY_IN.get(below_name, ""), title)
            elif "properties" in field and "anyOf" in found:
                yield self.toggle(below, below_name, found)
            elif "properties" in field and ":" in name:
                yield from self.nodes(below, below_name, field)
            elif "properties" in field:
                inside = tuple(self.nodes(below, below_name, field))
                yield Group(below, below_name, _title(key, found), folded(below_name, inside))
            else:
                yield self.leaf(below, below_name, field, required=key in part.get("required", ()))

    def toggle(self, path: Path, name: str, found: Schema) -> Toggle:
        section = self.resolve({"anyOf": found["anyOf"]})
        return Toggle(
            path=path,
            name=name,
            title=_title(path[-1], found),
            help=section["description"],
            nodes=tuple(self.nodes(path, name, section)),
        )

    def choice(self, path: Path, name: str, part: Schema, only_in: str, title: str = "") -> Choice:
        if "discriminator" in part:
            tag = part["discriminator"]["propertyName"]
            entries = [self.resolve(entry) for entry in part["oneOf"]]
        else:
            tag = next(key for key, field in part["properties"].items() if "const" in field)
            entries = [part]
        variants: dict[str, tuple[str, tuple[Node, ...]]] = {}
        for entry in entries:
            value = entry["properties"][tag]["const"]
            variants[value] = (entry.get("description", ""), tuple(self.nodes(path, f"{name}:{value}", entry)))
        return Choice(
            path=path,
            name=f"{name}.{tag}",
            tag=tag,
            title=_title(path[-1], {"title": title}),
            help=part.get("description", "") if "discriminator" in part else "",
            default=part.get("default", {}).get(tag) or next(iter(variants)),
            variants=variants,
            only_in=only_in,
        )

    def leaf(self, path: Path, name: str, part: Schema, *, required: bool) -> Leaf:
        kind = part["type"]
        choices = tuple((value, word(value, path[-1])) for value in part.get("enum", ()))
        drawn = {"boolean": "switch", "array": "list", "integer": "number", "number": "number", "string": "text"}[kind]
        return Leaf(
            path=path,
            name=name,
            title=_title(path[-1], part),
            help=_help(part.get("description", ""), choices),
            widget=WIDGETS.get(name) or ("select" if choices else drawn),
            kind=kind,
            item_kind=part["items"]["type"] if kind == "array" else "",
            default=part.get("default", part.get("enum", [None])[0]),
            suggested=part.get("examples", [None])[0],
            required=required,
            choices=choices,
            limits=_limits(part.get("items", part)) if kind != "string" else "",
            unit=unit_of(path[-1]),
            max_length=part.get("maxLength"),
            only_in=ONLY_IN.get(name, ""),
        )


def _help(said: str, choices: tuple[tuple[str, str], ...]) -> str:
    """The help as the spec has it, with the names of choices as the form shows them: "auto: ..." is "Auto: ..."."""
    for value, label in choices:
        said = re.sub(rf"(^|\. ){re.escape(value)}: ", rf"\g<1>{label}: ", said)
    return said


def _title(key: str, part: Schema, *, of_class: bool = False) -> str:
    """The title that the spec gives, or else the field's own name in words, without its unit."""
    given = str(part.get("title", ""))
    if given and not of_class and given != key.replace("_", " ").title():
        return given
    return word(bare_name(key))


def _limits(part: Schema) -> str:
    """Such as "1 to 64", "above 0, at most 100". Empty where there are none."""
    low, above = part.get("minimum"), part.get("exclusiveMinimum")
    high, below = part.get("maximum"), part.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{_plain(low)} to {_plain(high)}"
    said = [
        f"{words} {_plain(limit)}"
        for words, limit in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if limit is not None
    ]
    return ", ".join(said)


def _plain(limit: float) -> str:
    return f"{int(limit):,}" if float(limit).is_integer() else f"{limit:g}".replace("e-0", "e-")

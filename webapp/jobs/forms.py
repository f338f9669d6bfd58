"""The New job form: what was typed, what is wrong with it at which field, and what it would run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from trainer.sources import SpecProblem
from trainer.spec import JobSpec
from webapp.jobs.form_labels import labelled
from webapp.jobs.form_nodes import Choice, Group, Leaf, Node, Section, Toggle, leaves
from webapp.jobs.form_schema import sections
from webapp.jobs.form_values import chosen_in, raw_spec, text_of, typed_in

Loc = tuple[str | int, ...]
TAGS = ("name", "scheme")


@dataclass(frozen=True)
class BoundField:
    """One field with its text and errors; a choice has the fields of the chosen entry, a switch those that it opens."""

    node: Node
    value: str
    errors: list[str]
    fields: list[BoundField] = field(default_factory=list)
    about: str = ""
    """What the chosen entry of a choice is."""

    @property
    def widget(self) -> str:
        if isinstance(self.node, Leaf):
            return self.node.widget
        return type(self.node).__name__.lower()

    @property
    def placeholder(self) -> str:
        """What holds where the field is left empty."""
        if not isinstance(self.node, Leaf) or self.node.default is None:
            return ""
        return text_of(self.node.default)

    @property
    def is_wide(self) -> bool:
        """Fields with much to say get a row of their own."""
        return bool(self.fields) or self.widget in ("source", "toggle")


@dataclass(frozen=True)
class BoundSection:
    section: Section
    fields: list[BoundField]
    errors: list[str]


class SpecForm:
    """The form over `values`, the inputs' texts by name. Frozen once made."""

    def __init__(self, values: Mapping[str, str], problems: list[SpecProblem] | None = None) -> None:
        self.values = values
        self.mode = values.get("mode") or "federated"
        self._errors: dict[Loc, list[str]] = defaultdict(list)
        for problem in problems or []:
            self._errors[problem.loc].append(problem.marked or problem.message)
        self.num_errors = sum(len(said) for said in self._errors.values())
        self._shown: set[str] = set()
        self.sections = self._bind([section for section in sections() if section.only_in in ("", self.mode)])
        self.errors = [labelled(message) for said in self._errors.values() for message in said]
        """What belongs to no field on the page."""
        self.wrong = [
            field.node for part in self.sections for field in part.fields for field in _all(field) if field.errors
        ]
        """Fields with something to correct, in the order of the page."""
        self.kept = [(name, text) for name, text in values.items() if name in _known() and name not in self._shown]
        """Typed for entries that are not chosen now; it comes back with them."""

    def raw(self) -> dict[str, Any]:
        return raw_spec(self.values)

    def yaml(self, spec: JobSpec | None) -> str:
        """The spec as one would write it to a file: all of it where it is valid, else what was typed."""
        plain = spec.model_dump(mode="json", exclude_none=True) if spec else self.raw()
        return as_yaml(plain)

    def _bind(self, shown: list[Section]) -> list[BoundSection]:
        bound = [BoundSection(section, list(self._fields(section.nodes)), []) for section in shown]
        # What no field took is said at its section, the innermost one.
        for part in sorted(bound, key=lambda part: -len(part.section.path)):
            if part.section.path:
                part.errors.extend(self._take(part.section.path))
        return bound

    def _fields(self, nodes: tuple[Node, ...]) -> Iterator[BoundField]:
        for node in nodes:
            if node.only_in not in ("", self.mode):
                continue
            self._shown.add(node.name)
            if isinstance(node, Choice):
                chosen = chosen_in(node, self.values)
                about, options = node.variants.get(chosen, ("", ()))
                below = list(self._fields(options))
                # What no option below took, such as a check over several of them, is said at the choice.
                yield BoundField(node, chosen, self._take(node.path), below, about)
            elif isinstance(node, Group):
                below = list(self._fields(node.nodes))
                yield BoundField(node, "", self._take(node.path), below)
            elif isinstance(node, Toggle):
                value = self.values.get(node.name, node.default)
                below = list(self._fields(node.nodes)) if value == "on" else []
                yield BoundField(node, value, self._take(node.path), below)
            else:
                default = "" if node.default is None else text_of(node.default)
                typed = typed_in(node, self.values)
                yield BoundField(node, default if typed is None else typed, self._take(node.path))

    def _take(self, path: tuple[str, ...]) -> list[str]:
        """Every error at or below `path` that no field took yet, each once."""
        found = [loc for loc in self._errors if loc[: len(path)] == path]
        return list(dict.fromkeys(self._at_field(loc, message) for loc in found for message in self._errors.pop(loc)))

    def _at_field(self, loc: Loc, message: str) -> str:
        """A sentence under its own label: it need not name the field, and names others by their labels too."""
        if loc == ("name",) and not self.values.get("name", "").strip():
            return "Give the job a name."
        key = next((part for part in reversed(loc) if isinstance(part, str)), "")
        for opening in (f"'{key}' is ", f"'{key}' has ", f"'{key}' "):
            if message.startswith(opening):
                rest = message.removeprefix(opening)
                return rest[0].upper() + rest[1:]
        return labelled(message)


def _all(field: BoundField) -> Iterator[BoundField]:
    yield field
    for below in field.fields:
        yield from _all(below)


@cache
def _known() -> set[str]:
    return {node.name for section in sections() for node in leaves(section.nodes)}


class _Dumper(yaml.SafeDumper):
    """Lists on one line, such as [200, 200]; everything else on lines of its own."""


_Dumper.add_representer(
    dict,
    # The name of an entry stands before its options.
    lambda dumper, part: dumper.represent_dict(sorted(part.items(), key=lambda item: item[0] not in TAGS)),
)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def as_yaml(plain: dict[str, Any]) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=72)

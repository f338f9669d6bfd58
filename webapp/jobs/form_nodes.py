"""What the New job form is made of: fields, choices, switches, groups and cards, as `form_schema` reads them from the spec."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from webapp.jobs.form_words import word

Path = tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """One value. `widget` is text, number, select, segments, switch, list, source, server_data or nodes."""

    path: Path
    name: str
    title: str
    help: str
    widget: str
    kind: str
    """Type of the value in JSON: string, integer, number, boolean or array."""
    item_kind: str
    """Type of an array's items; empty for what is no array."""
    default: Any
    suggested: Any
    """What stands there when its section is switched on. Empty, it means `default`."""
    required: bool
    choices: tuple[tuple[str, str], ...] = ()
    limits: str = ""
    """Such as "1 to 64", for the person; the spec is what checks."""
    unit: str = ""
    max_length: int | None = None
    only_in: str = ""

    @property
    def id(self) -> str:
        return html_id(self.name)


@dataclass(frozen=True)
class Choice:
    """A registered entry by its name, and the options that the chosen entry has."""

    path: Path
    name: str
    tag: str
    """The field of the spec that holds the entry's name."""
    title: str
    help: str
    default: str
    variants: dict[str, tuple[str, tuple[Node, ...]]]
    """Entry -> (what it is, its options)."""
    only_in: str = ""

    @property
    def id(self) -> str:
        return html_id(self.name)

    @property
    def choices(self) -> tuple[tuple[str, str], ...]:
        return tuple((value, word(value, self.path[-1])) for value in self.variants)


@dataclass(frozen=True)
class Toggle:
    """A section that may be left out, or a fold of the layout: a switch, and the fields that it opens."""

    path: Path
    """Of the section; of a fold, of the field that is set where it is open."""
    name: str
    title: str
    help: str
    nodes: tuple[Node, ...]
    is_section: bool = True
    default: str = "off"
    only_in: str = ""

    @property
    def id(self) -> str:
        return html_id(self.name)


@dataclass(frozen=True)
class Group:
    """A section inside a section: its fields stand together under its title."""

    path: Path
    name: str
    title: str
    nodes: tuple[Node, ...]
    only_in: str = ""

    @property
    def id(self) -> str:
        return html_id(self.name)


@dataclass(frozen=True)
class Section:
    """A card of the form."""

    path: Path
    title: str
    help: str
    nodes: tuple[Node, ...]
    only_in: str = ""


Field = Leaf | Choice | Toggle
"""What has an input of its own."""
Node = Field | Group


def leaves(nodes: tuple[Node, ...]) -> Iterator[Field]:
    """Every field below `nodes`, those of entries that are not chosen and of sections that are switched off too."""
    for node in nodes:
        if not isinstance(node, Group):
            yield node
        if isinstance(node, Toggle | Group):
            yield from leaves(node.nodes)
        elif isinstance(node, Choice):
            for _, options in node.variants.values():
                yield from leaves(options)


def html_id(name: str) -> str:
    return "f-" + name.replace(".", "-").replace(":", "-")

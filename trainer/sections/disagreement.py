"""What choices that do not go together say: one sentence, that names fields by path in YAML and by label in the form."""

from __future__ import annotations

import re

MARK = re.compile(r"`(?P<path>[a-z_0-9]+(?:\.[a-z_0-9]+)*)(?:=(?P<value>[a-z_0-9/]+))?`")
"""A field, such as `clients.num`, or a value of one, such as `encoding=float32`; in backticks, as here."""


class Disagreement(ValueError):
    """Fields whose values do not go together.

    `marked` is a sentence with what to do, in which fields and values of registries stand in backticks: "set `encoding` to
    `encoding=float32`". Paths begin below the section whose check it is. The first field that it names is where it is said.
    """

    def __init__(self, marked: str) -> None:
        super().__init__(plain(marked))
        self.marked = marked


def plain(marked: str) -> str:
    """Return the sentence for who writes YAML: "set encoding to float32"."""
    return MARK.sub(lambda mark: mark["value"] or mark["path"], marked)


def rooted(section: str, marked: str) -> str:
    """Return the sentence with paths that begin at the top of the spec, for a check of `section`."""
    return MARK.sub(lambda mark: f"`{section}.{mark[0][1:]}", marked) if section else marked


def counted(num: int, noun: str) -> str:
    """Return such as "1 node" or "1,200 nodes"."""
    return f"{num:,} {noun}" + ("" if num == 1 else "s")

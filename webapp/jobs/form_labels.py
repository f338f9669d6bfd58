"""Sentences of the spec as the form says them: with the labels and choices that it shows."""

from __future__ import annotations

from functools import cache
from re import Match

from trainer.sections.disagreement import MARK
from webapp.jobs.form_nodes import Choice, Leaf, leaves
from webapp.jobs.form_schema import sections


def labelled(marked: str) -> str:
    """Return the sentence of a `Disagreement` for the form: "set “Update encoding” to float32"."""
    return MARK.sub(_label, marked)


def _label(mark: Match[str]) -> str:
    titles, words = _known()
    path, value = mark["path"], mark["value"]
    return words.get((path, value), value) if value else f"“{titles[path]}”" if path in titles else path


@cache
def _known() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Path -> its label, and (path, value) -> how the form shows that choice."""
    fields = [node for section in sections() for node in leaves(section.nodes)]
    titles = {".".join(node.path): node.title for node in fields}
    choosers = [node for node in fields if isinstance(node, Choice | Leaf)]
    words = {(".".join(node.path), value): label for node in choosers for value, label in node.choices}
    return titles, words

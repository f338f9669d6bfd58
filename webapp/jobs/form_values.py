"""Between a spec and what the inputs of the form hold: flat, text, and with room for what is not valid yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from webapp.jobs.form_nodes import Choice, Group, Leaf, Node, Toggle, leaves
from webapp.jobs.form_schema import sections

Values = dict[str, str]


def values_of(spec: Mapping[str, Any]) -> Values:
    """Return the inputs' texts for a spec, or for a part of one. What the spec leaves out is left out."""
    values: Values = {}
    for section in sections():
        _fill(values, section.nodes, spec)
    return values


def _fill(values: Values, nodes: tuple[Node, ...], spec: Mapping[str, Any]) -> None:
    for node in nodes:
        found = _at(spec, node.path)
        if found is None:
            continue
        if isinstance(node, Leaf):
            values[node.name] = text_of(found)
        elif isinstance(node, Group):
            _fill(values, node.nodes, spec)
        elif isinstance(node, Toggle):
            values[node.name] = "on"
            values |= {leaf.name: "" for leaf in leaves(node.nodes) if isinstance(leaf, Leaf) and leaf.suggested}
            _fill(values, node.nodes, spec)
        elif isinstance(found, Mapping) and found.get(node.tag) in node.variants:
            values[node.name] = str(found[node.tag])
            _fill(values, node.variants[values[node.name]][1], spec)


def raw_spec(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec that the inputs mean, as JSON. What cannot be read as its type stays text, for the spec to refuse."""
    raw: dict[str, Any] = {}
    mode = values.get("mode", "")
    for section in sections():
        if section.only_in in ("", mode):
            _put(raw, section.nodes, values, mode)
    return raw


def _put(raw: dict[str, Any], nodes: tuple[Node, ...], values: Mapping[str, str], mode: str) -> None:
    for node in nodes:
        if node.only_in not in ("", mode):
            continue
        if isinstance(node, Choice):
            chosen = chosen_in(node, values)
            _set(raw, (*node.path, node.tag), chosen)
            _put(raw, node.variants.get(chosen, ("", ()))[1], values, mode)
            continue
        if isinstance(node, Group):
            _put(raw, node.nodes, values, mode)
            continue
        if isinstance(node, Toggle):
            if values.get(node.name) == "on":
                if node.is_section:
                    _set(raw, node.path, {})
                _put(raw, node.nodes, values, mode)
            continue
        text = typed_in(node, values)
        if text is not None and (text.strip() or node.required or node.kind == "array"):
            _set(raw, node.path, _read(node, text))


def chosen_in(choice: Choice, values: Mapping[str, str]) -> str:
    """The entry that the form shows."""
    return values.get(choice.name) or choice.default


def typed_in(leaf: Leaf, values: Mapping[str, str]) -> str | None:
    """The input's text; of one that was not on the page yet, what it begins with."""
    begins = None if leaf.suggested is None else text_of(leaf.suggested)
    return values.get(leaf.name, begins)


def text_of(value: Any) -> str:
    """How a value of the spec stands in its input."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(text_of(part) for part in value)
    if isinstance(value, float):
        # As one writes it: 1 for 1.0, and 1e-5 for 1e-05.
        return str(int(value)) if value.is_integer() else re.sub(r"e([+-])0", r"e\1", str(value))
    return str(value)


def _read(leaf: Leaf, text: str) -> Any:
    if leaf.kind == "boolean":
        return text == "on"
    if leaf.kind == "array":
        parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
        return parts if leaf.item_kind == "string" else [_number(part) for part in parts]
    return text if leaf.kind == "string" else _number(text.strip())


def _number(text: str) -> int | float | str:
    # Only what one would write as a number: Python's int also reads 1_000 and digits of other scripts.
    if re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?", text):
        return float(text)
    return text


def _at(spec: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = spec
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def _set(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        raw = raw.setdefault(key, {})
    raw[path[-1]] = value

"""Which fields of the spec stand together in the form, where it shows them otherwise than the spec nests them."""

from __future__ import annotations

from dataclasses import dataclass

from webapp.jobs.form_nodes import Group, Node, Section, Toggle


@dataclass(frozen=True)
class Card:
    title: str
    help: str
    fields: tuple[str, ...]
    """Fields of the section, in their order here. A group by itself is the card."""


@dataclass(frozen=True)
class Fold:
    """A switch that opens fields which mean something only together. It is on where the first of them is set."""

    name: str
    title: str
    help: str
    fields: tuple[str, ...]


CARDS: dict[str, tuple[Card, ...]] = {
    "federated": (
        Card(
            "Rounds",
            "weights out, updates in, aggregated",
            ("rounds", "local_epochs", "evaluate_every", "server_data", "round_deadline_seconds", "stop"),
        ),
        Card(
            "Algorithm",
            "how clients train, and how their updates become the next weights",
            ("strategy", "aggregator", "server_optimizer", "encoding"),
        ),
        Card("Clients", "who takes part, and who is drawn for a round", ("clients",)),
        Card("Privacy", "who learns what", ("secure_aggregation", "privacy", "local_privacy")),
    )
}
"""Section -> its cards. A field that no card names stands on the first one."""

FOLDS: dict[str, Fold] = {
    "federated.clients": Fold(
        "simulation",
        "Simulation",
        "Virtual clients share out one data source, and the nodes train them side by side. Off: every node is one client.",
        ("simulate", "processes"),
    )
}
"""Section -> its fields behind a switch of the form alone."""


def cut(whole: Section) -> list[Section]:
    """The cards of a section. The first one stands for all of it: what belongs to no field is said there."""
    if whole.path[0] not in CARDS:
        return [whole]
    nodes = {node.path[-1]: node for node in whole.nodes}
    named = [key for card in CARDS[whole.path[0]] for key in card.fields]
    rest = [key for key in nodes if key not in named]
    cards: list[Section] = []
    for card in CARDS[whole.path[0]]:
        own = [nodes[key] for key in [*card.fields, *rest]]
        path, rest = (() if cards else whole.path), []
        if len(own) == 1 and isinstance(own[0], Group):
            cards.append(Section(own[0].path, card.title, card.help, own[0].nodes, whole.only_in))
        else:
            cards.append(Section(path, card.title, card.help, tuple(own), whole.only_in))
    return cards


def folded(name: str, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The fields of a section; those of its fold stand first, behind their switch: it says what the others mean."""
    if (fold := FOLDS.get(name)) is None:
        return nodes
    inside = tuple(node for node in nodes if node.path[-1] in fold.fields)
    switch = Toggle(inside[0].path, f"{name}.{fold.name}", fold.title, fold.help, inside, is_section=False)
    return (switch, *(node for node in nodes if node not in inside))

"""The privacy budgets that nodes' owners keep for their data sources, as the nodes tell them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.protocol import SourceBudget
from webapp.fleet.models import Node


@dataclass(frozen=True)
class NodeBudget:
    """The budget of one source on one node."""

    node: str
    budget: SourceBudget

    @property
    def share(self) -> float:
        """What is spent of it, 0 to 1. A budget that was lowered afterwards may be overspent."""
        return min(1.0, self.budget.spent_epsilon / self.budget.max_epsilon)


def budgets_on(node: Node) -> list[NodeBudget]:
    """The budgets of a node, by source."""
    return [NodeBudget(node.name, budget) for budget in sorted(node.facts.budgets, key=lambda b: b.source)]


def budgets_by_source(nodes: Iterable[Node]) -> dict[str, list[NodeBudget]]:
    """Source -> its budgets, those of which most is spent first."""
    found: defaultdict[str, list[NodeBudget]] = defaultdict(list)
    for node in nodes:
        for budget in budgets_on(node):
            found[budget.budget.source].append(budget)
    return {source: sorted(budgets, key=lambda b: (-b.share, b.node)) for source, budgets in found.items()}

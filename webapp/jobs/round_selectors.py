"""What the job page shows of rounds: the ledger, the clients of a round, and who holds which labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from django.db.models import Count, Max, Q, QuerySet, Sum
from django.template.defaultfilters import pluralize

from trainer.federated.facts import RoundFacts
from trainer.sources import BUILTIN_SOURCES
from webapp.jobs.buffer_rows import buffer_of
from webapp.jobs.buffer_selectors import buffered_ledger_of, buffered_participations
from webapp.jobs.models import Attempt, Job, Participation, Round

MOST_CLIENTS_DRAWN = 50
"""Clients in the picture of labels. Of more, the first ones stand for all."""
MOST_LABELS_DRAWN = 30
"""Labels with a column of their own in that picture. Of more, the most frequent ones, and one column counts the others."""
_MOST_DIGITS = 18
"""Digits that are ordered as one number; a longer run is ordered as text."""


def ledger_of(job: Job) -> QuerySet[Round]:
    """The rounds, newest first, each with the counts of its participations by state. A thousand clients cost one row."""
    if buffer_of(job.spec):
        return buffered_ledger_of(job)
    states = Participation.State
    returned = Q(participations__state=states.RETURNED)
    return (
        Round.objects.filter(attempt__job=job)
        .select_related("attempt")
        .annotate(
            num_asked=Count("participations"),
            num_returned=Count("participations", filter=returned),
            num_late=Count("participations", filter=Q(participations__state=states.LATE)),
            num_lost=Count("participations", filter=Q(participations__state=states.LOST)),
            num_refused=Count("participations", filter=Q(participations__state=states.REFUSED)),
            num_failed=Count("participations", filter=Q(participations__state=states.FAILED)),
            num_examples=Sum("participations__num_examples", filter=returned),
            num_bytes_up=Sum("participations__size_bytes", filter=returned),
            num_bytes_down=Sum("participations__bytes_down", filter=returned),
            slowest_seconds=Max("participations__seconds_training", filter=returned),
        )
        .order_by("-attempt__number", "-number")
    )


@dataclass(frozen=True)
class ClientRow:
    """One client of a round, with what the aggregation says of its update; None where it says nothing."""

    participation: Participation
    weight: float | None = None
    """Share of the update in the result, 0 to 1."""
    norm: float | None = None
    """Euclidean norm of the update, before any clipping."""
    is_clipped: bool = False
    is_left_out: bool = False


def clients_of(round_: Round, job: Job) -> list[ClientRow]:
    """Who was asked in a round and what came of it, by client."""
    facts = RoundFacts.model_validate(round_.facts)
    # The facts are in the order of the round's updates, which are those that returned, by client.
    if buffer_of(job.spec):
        rows = buffered_participations(round_)
        summed = [p.pk for p in rows if p.counted_in_id == round_.pk]
    else:
        rows = list(round_.participations.select_related("assignment__node").order_by("assignment__index"))
        summed = [p.pk for p in rows if p.state == Participation.State.RETURNED]
    weights, norms = (dict(zip(summed, values or (), strict=False)) for values in (facts.weights, facts.norms))
    bound = norm_bound(facts, job)
    return [
        ClientRow(
            participation=p,
            weight=weights.get(p.pk),
            norm=norms.get(p.pk),
            is_clipped=bound is not None and norms.get(p.pk, 0.0) > bound,
            is_left_out=p.assignment.index in (facts.left_out or ()),
        )
        for p in rows
    ]


def norm_bound(facts: RoundFacts, job: Job) -> float | None:
    """The norm to which the round's updates were cut, if they were."""
    if facts.clip_norm is not None:
        return facts.clip_norm
    federated = job.spec.federated
    return federated.aggregator.max_norm if federated and federated.aggregator.name == "norm_bound" else None


@dataclass(frozen=True)
class Bar:
    """Rows of one label with one client: a piece of the client's bar, in per cent of the longest bar."""

    label: str
    count: int
    start: float
    length: float
    shade: int
    """Number of the label's colour."""


@dataclass(frozen=True)
class LabelRow:
    """A client's training rows by column of the picture. `counts` is None where nobody said."""

    client: int
    node: str
    counts: tuple[int, ...] | None
    total: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class LabelPicture:
    """Who holds which labels and how much, on the nodes of the latest attempt."""

    labels: tuple[str, ...]
    """Heads of the columns. The last one may stand for many labels, such as `70 others`."""
    rows: tuple[LabelRow, ...]
    num_more: int
    """Clients that are not drawn."""


def labels_of(job: Job, attempt: Attempt | None) -> LabelPicture:
    """Return the newest counts that each client's node shared, in whichever attempt. Three queries, however many rounds."""
    num_clients = job.spec.num_nodes
    drawn = range(min(num_clients, MOST_CLIENTS_DRAWN))
    nodes: dict[int, tuple[object, str]] = {}
    found: dict[int, dict[str, int]] = {}
    if attempt is not None:
        held = attempt.assignments.filter(index__in=drawn).values_list("index", "node", "node__name")
        nodes = {client: (node, name) for client, node, name in held}
        said = Participation.objects.filter(assignment__attempt__job=job, label_counts__isnull=False)
        newest = (
            said.filter(assignment__index__in=drawn)
            .values_list("assignment__index", "assignment__node")
            .annotate(newest=Max("id"))
        )
        # A client that went to another node in a later attempt may have other rows there.
        ids = [pk for client, node, pk in newest if client in nodes and nodes[client][0] == node]
        counts_of = Participation.objects.filter(id__in=ids).values_list("assignment__index", "label_counts")
        found = {client: counts for client, counts in counts_of if counts is not None}
    names = {client: name for client, (_, name) in nodes.items()}
    return draw_labels(job.spec.data.source, found, names, num_drawn=len(drawn), num_clients=num_clients)


def draw_labels(
    source: str, found: dict[int, dict[str, int]], nodes: dict[int, str], *, num_drawn: int, num_clients: int
) -> LabelPicture:
    """Return the picture of the first `num_drawn` clients of a job on `source`, from the counts that are known, by client."""
    # A label keeps its column and colour: of built-in data all are known before anybody has said anything.
    seen = sorted({label for counts in found.values() for label in counts}, key=_natural)
    labels = list(dict.fromkeys([*_known_labels(source), *seen]))
    shown = _most_frequent(labels, found.values())
    heads = list(shown)
    if num_others := len(labels) - len(shown):
        heads.append(f"{num_others:,} other{pluralize(num_others)}")
    longest = max((sum(counts.values()) for counts in found.values()), default=0)
    rows = tuple(
        _label_row(client, nodes.get(client, ""), found.get(client), shown, heads, longest)
        for client in range(num_drawn)
    )
    return LabelPicture(tuple(heads), rows, num_clients - len(rows))


def _most_frequent(labels: list[str], found: Iterable[dict[str, int]]) -> list[str]:
    """Those of `labels` that get a column, in the same order."""
    if len(labels) <= MOST_LABELS_DRAWN:
        return labels
    totals: Counter[str] = Counter()
    for counts in found:
        totals.update(counts)
    most = set(sorted(labels, key=lambda label: -totals[label])[:MOST_LABELS_DRAWN])
    return [label for label in labels if label in most]


def _label_row(
    client: int, node: str, found: dict[str, int] | None, shown: list[str], heads: list[str], longest: int
) -> LabelRow:
    """The client's row. `heads` are those of the columns: the labels `shown`, and one more where there are others."""
    if found is None:
        return LabelRow(client, node, None, 0, ())
    counts = [found.get(label, 0) for label in shown]
    if len(heads) > len(shown):
        counts.append(sum(found.values()) - sum(counts))
    ends = list(accumulate(counts))
    bars = tuple(
        Bar(label, count, start=100 * (end - count) / longest, length=100 * count / longest, shade=shade)
        for shade, (label, count, end) in enumerate(zip(heads, counts, ends, strict=True))
        if count
    )
    return LabelRow(client, node, tuple(counts), ends[-1] if ends else 0, bars)


def _known_labels(source: str) -> list[str]:
    schema = BUILTIN_SOURCES.get(source)
    return list(schema.classes or map(str, range(schema.num_classes or 0))) if schema else []


def _natural(label: str) -> tuple[tuple[bool, int, str], ...]:
    """Numbers by their size, so that 10 comes after 9."""
    parts = (part for part in re.split(r"(\d+)", label) if part)
    return tuple((False, int(part), part) if _is_number(part) else (True, 0, part) for part in parts)


def _is_number(part: str) -> bool:
    """Whether `part` is one number: not `²`, a digit that int() does not read, and not so long that int() refuses it."""
    return part.isdecimal() and len(part) <= _MOST_DIGITS

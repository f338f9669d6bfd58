"""Derived facts of rounds and histories, for templates."""

from __future__ import annotations

from datetime import datetime

from django import template

from webapp.jobs.models import Assignment, Round

register = template.Library()

NUM_SHADES = 10
"""Colours of labels in pages.css."""


@register.filter
def moment(text: str) -> datetime:
    """Return the time that a `Waiting` carries as text."""
    return datetime.fromisoformat(text)


@register.filter
def round_seconds(round_: Round) -> float | None:
    """From the asking of a closed round to its closing."""
    return (round_.closed_at - round_.opened_at).total_seconds() if round_.closed_at else None


@register.filter
def round_overhead(round_: Round) -> float | None:
    """What a closed round took beyond the training of its slowest client; `page_selectors.ledger_of` annotates that."""
    whole = round_seconds(round_)
    slowest: float | None = getattr(round_, "slowest_seconds", None)
    return None if whole is None or slowest is None else max(0.0, whole - slowest)


@register.filter
def simulated_overhead(round_: Round, num_ranks: int) -> float | None:
    """What a simulated round took beyond its clients' training, as if its processes had shared that evenly."""
    whole = round_seconds(round_)
    return None if whole is None else max(0.0, whole - round_.facts["seconds_training"] / num_ranks)


@register.filter
def ranks_of(assignment: Assignment) -> str:
    """Return the numbers of a group's ranks, such as `2–3`: torch elastic counts them group by group."""
    first = assignment.index * assignment.slots
    last = first + assignment.slots - 1
    return f"{first}" if first == last else f"{first}–{last}"


@register.filter
def room_rows(most: int, num_sources: int) -> range:
    """Return a range to loop over: the rows that a chart's legend will have."""
    return range(min(most, num_sources))


@register.filter
def subject_word(subject: str) -> str:
    """Return what a row of the history is about: "job:12" is the job."""
    return subject.partition(":")[0]


@register.filter
def share(part: float | None) -> str:
    """Return a share of one in per cent, with one decimal."""
    return "–" if part is None else f"{100 * part:.1f} %"


@register.filter
def small_share(part: float) -> str:
    """Return a share of one in per cent; what is there is never shown as 0."""
    if part == 0:
        return "0 %"
    return f"{100 * part:.2f} %" if part >= 1e-4 else "below 0.01 %"


@register.filter
def shade(number: int) -> int:
    """Return the colour of the label with this number: there are as many in pages.css, and they come again."""
    return number % NUM_SHADES

"""Finding jobs in a list."""

from __future__ import annotations

from collections.abc import Sequence

from django.contrib.auth.models import User
from django.db.models import Q, QuerySet

from webapp.jobs.models import Job
from webapp.jobs.selectors import jobs_visible_to


def search_jobs(
    user: User, *, states: Sequence[str] = (), mode: str | None = None, team: str = "", owner: str = "", text: str = ""
) -> QuerySet[Job]:
    """The jobs that `user` may see and that meet all conditions, newest first. An empty condition is none.

    `team` is a slug, `owner` a user name; `text` is a part of the job's name, or its number.
    """
    jobs = jobs_visible_to(user)
    if states:
        jobs = jobs.filter(state__in=states)
    if mode:
        jobs = jobs.filter(mode=mode)
    if team:
        jobs = jobs.filter(team__slug=team)
    if owner:
        jobs = jobs.filter(owner__username=owner)
    if text:
        named = Q(name__icontains=text)
        # 18 digits fit the column's 64 bits.
        is_number = text.isascii() and text.isdigit() and len(text) <= 18
        jobs = jobs.filter(named | Q(pk=int(text)) if is_number else named)
    return jobs.order_by("-id")

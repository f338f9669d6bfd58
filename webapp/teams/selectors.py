"""Reads of teams and roles."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db.models import QuerySet

from webapp.core.errors import Refusal
from webapp.teams.models import ApiToken, Membership, Team


def teams_of(user: User) -> QuerySet[Team]:
    """The teams that `user` is in. A site administrator is in those only that took them in."""
    return Team.objects.filter(memberships__user=user)


def role_in(user: User, team: Team) -> str | None:
    """The role of `user` in `team`, or None outside it."""
    return Membership.objects.filter(user=user, team=team).values_list("role", flat=True).first()


def teams_visible_to(user: User) -> QuerySet[Team]:
    """The teams that `user` may know of: one's own; all of them for a site administrator."""
    return Team.objects.all() if user.is_staff else teams_of(user)


def memberships_of(user: User) -> QuerySet[Membership]:
    """The memberships of `user` with their teams, by name."""
    return Membership.objects.select_related("team").filter(user=user).order_by("team__name")


def members_of(team: Team) -> QuerySet[Membership]:
    """The members with their users, by name."""
    return team.memberships.select_related("user").order_by("user__username")


def tokens_of(user: User) -> QuerySet[ApiToken]:
    """The tokens of `user` that still open something, newest first."""
    return ApiToken.objects.filter(user=user, revoked_at=None)


def can_manage(user: User, team: Team) -> bool:
    """Whether `user` may add and remove members of `team`: its maintainers and site administrators."""
    return user.is_staff or role_in(user, team) == Membership.Role.MAINTAINER


def team_for_job(user: User, slug: str = "") -> Team:
    """The team that a new job of `user` belongs to: the one named by `slug`, or the user's only one.

    Raises Refusal (422) where the choice is missing or not theirs. Whether they may submit there,
    `jobs.permissions.require_submit` says.
    """
    teams = {team.slug: team for team in teams_of(user)}
    if slug and slug not in teams:
        # A team that one is not in does not exist, except to site administrators.
        named = Team.objects.filter(slug=slug).first() if user.is_staff else None
        if named is None:
            raise Refusal(f"You are in no team '{slug}'. {_yours(teams)}", status=422)
        return named
    if not slug and len(teams) != 1:
        raise Refusal(f"Choose the team that the job belongs to. {_yours(teams)}", status=422)
    return teams[slug] if slug else next(iter(teams.values()))


def _yours(teams: dict[str, Team]) -> str:
    return f"Your teams: {', '.join(sorted(teams))}." if teams else "You are in no team yet: ask an administrator."

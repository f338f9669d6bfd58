"""Every write to teams, memberships and API tokens. Each one leaves an audit row."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.text import slugify

from webapp.core.audit import record_act
from webapp.core.errors import Refusal
from webapp.teams.models import ApiToken, Membership, Team

TOKEN_PREFIX = "tma_"
"""Lets people and secret scanners tell what a leaked string is."""
LAST_USE_GRAIN = timedelta(minutes=1)
"""How fine `last_used_at` is. A script that polls must not cost a write for each request."""


def create_team(*, name: str, actor: User | None = None) -> Team:
    """Create a team. Raises Refusal where the name is empty, too long or taken, whatever its capitals."""
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise Refusal("A team's name has 1 to 80 printable characters.", status=422)
    # Compared here: SQLite lowers ASCII only. The constraint is for two requests at once.
    for taken in Team.objects.values_list("name", flat=True):
        if taken.casefold() == name.casefold():
            raise Refusal(f"There is a team '{taken}' already, and capitals make no other name: choose another one.")
    try:
        with transaction.atomic():
            team = Team.objects.create(name=name, slug=_free_slug(name))
            record_act(actor=actor, act="create_team", target=f"team {team.slug}", name=name)
    except IntegrityError:  # another request took the name or the slug first
        raise Refusal(f"A team like '{name}' was created at this moment: choose another name.") from None
    return team


def _free_slug(name: str) -> str:
    """The name in ASCII, numbered where that is taken. A name without a Latin letter becomes `team`."""
    base = slugify(name)[:70] or "team"
    taken = set(Team.objects.filter(slug__startswith=base).values_list("slug", flat=True))
    return base if base not in taken else next(s for n in range(2, len(taken) + 3) if (s := f"{base}-{n}") not in taken)


def add_member(*, team: Team, user: User, role: str, actor: User | None = None) -> Membership:
    """Take `user` into `team`. Raises Refusal for an unknown role, or where the user is in the team already."""
    _check_role(role)
    try:
        with transaction.atomic():
            membership = Membership.objects.create(team=team, user=user, role=role)
            record_act(actor=actor, act="add_member", target=_member(team, user), role=role)
    except IntegrityError:
        raise Refusal(f"{user.username} is in {team.name} already: change the role instead.") from None
    return membership


@transaction.atomic
def change_role(*, team: Team, user: User, role: str, actor: User | None = None) -> None:
    """Give a member another role. Raises Refusal for an unknown role, or where the user is not in the team."""
    _check_role(role)
    if not Membership.objects.filter(team=team, user=user).update(role=role):
        raise Refusal(f"{user.username} is not in {team.name}: add them first.")
    record_act(actor=actor, act="change_role", target=_member(team, user), role=role)


@transaction.atomic
def remove_member(*, team: Team, user: User, actor: User | None = None) -> None:
    """Take `user` out of `team`; the jobs stay with the team. Raises Refusal where the user is not in the team."""
    removed, _ = Membership.objects.filter(team=team, user=user).delete()
    if not removed:
        raise Refusal(f"{user.username} is not in {team.name}.")
    record_act(actor=actor, act="remove_member", target=_member(team, user))


def _check_role(role: str) -> None:
    if role not in Membership.Role.values:
        raise Refusal(f"There is no role '{role}': choose {', '.join(Membership.Role.values)}.", status=422)


def _member(team: Team, user: User) -> str:
    return f"{user.username} in team {team.slug}"


@transaction.atomic
def create_api_token(*, user: User, name: str, actor: User | None = None) -> tuple[ApiToken, str]:
    """Return a new token's row and the token itself, which is kept nowhere and cannot be shown again."""
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise Refusal("A token's name has 1 to 80 printable characters: name what will use it.", status=422)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(user=user, name=name, hash=_hash(secret), hint=secret[:12])
    record_act(actor=actor, act="create_api_token", target=f"token {token.pk} of {user.username}", name=name)
    return token, secret


@transaction.atomic
def revoke_api_token(*, token: ApiToken, actor: User | None = None) -> None:
    """End a token at once. Revoking it again changes nothing."""
    if ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
        record_act(actor=actor, act="revoke_api_token", target=f"token {token.pk} of {token.user.username}")


def authenticate_token(*, token: str) -> User | None:
    """Return the active user whose unrevoked token this is, or None.

    The lookup is by SHA-256 of 256 random bits: how long it takes tells nothing about any token.
    """
    row = (
        ApiToken.objects.select_related("user").filter(hash=_hash(token), revoked_at=None, user__is_active=True).first()
    )
    if row is None:
        return None
    now = timezone.now()
    stale = now - LAST_USE_GRAIN
    if row.last_used_at is None or row.last_used_at <= stale:
        # Filtered again: of many requests at once, one writes.
        unmarked = Q(last_used_at=None) | Q(last_used_at__lte=stale)
        ApiToken.objects.filter(unmarked, pk=row.pk).update(last_used_at=now)
    return row.user


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()

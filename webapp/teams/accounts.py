"""Accounts, as administrators make them. Each act leaves an audit row."""

from __future__ import annotations

import secrets

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from webapp.core.audit import record_act
from webapp.core.errors import Refusal
from webapp.teams.models import Team
from webapp.teams.services import add_member


def create_account(*, username: str, team: Team, role: str, actor: User) -> tuple[User, str]:
    """Return a new member of `team` and the generated password, which is shown once and kept as a hash only.

    Raises Refusal for a name that is taken or no user name, and for an unknown role.
    """
    password = secrets.token_urlsafe(15)
    user = User(username=User.normalize_username(username.strip()))
    user.set_password(password)
    try:
        user.full_clean()
        with transaction.atomic():
            user.save()
            record_act(actor=actor, act="create_account", target=f"user {user.username}")
            add_member(team=team, user=user, role=role, actor=actor)
    except ValidationError as error:
        raise Refusal(" ".join(error.messages), status=422) from None
    except IntegrityError:  # another request took the name first
        raise Refusal(f"There is a user '{user.username}' already: choose another name.") from None
    return user, password

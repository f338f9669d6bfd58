"""API tokens: shown once, kept as a hash, revoked at once."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from webapp.core.errors import Refusal
from webapp.core.models import AuditEntry
from webapp.teams.models import ApiToken
from webapp.teams.services import authenticate_token, create_api_token, revoke_api_token


def test_only_the_hash_is_kept(owner):
    row, token = create_api_token(user=owner, name="laptop")
    assert token.startswith("tma_")
    assert len(token) == len("tma_") + 43
    assert row.hash == hashlib.sha256(token.encode()).hexdigest()
    assert token.startswith(row.hint)
    columns = ApiToken.objects.filter(pk=row.pk).values().get()
    assert token not in map(str, columns.values())


def test_it_authenticates_its_owner(owner):
    _, token = create_api_token(user=owner, name="laptop")
    assert authenticate_token(token=token) == owner


@pytest.mark.parametrize("wrong", ["", "tma_", "tma_wrong", "\udcff", "x" * 100_000])
def test_a_wrong_token_is_nobody(owner, wrong):
    create_api_token(user=owner, name="laptop")
    assert authenticate_token(token=wrong) is None


def test_a_revoked_token_is_nobody(owner):
    row, token = create_api_token(user=owner, name="laptop")
    revoke_api_token(token=row, actor=owner)
    assert authenticate_token(token=token) is None


def test_revoking_twice_is_one_act(owner):
    row, _ = create_api_token(user=owner, name="laptop")
    revoke_api_token(token=row, actor=owner)
    revoke_api_token(token=row, actor=owner)
    acts = AuditEntry.objects.order_by("id").values_list("act", "actor_name")
    assert list(acts) == [("create_api_token", "command line"), ("revoke_api_token", "owner")]


def test_the_token_of_a_deactivated_user_is_nobody(owner):
    _, token = create_api_token(user=owner, name="laptop")
    owner.is_active = False
    owner.save(update_fields=["is_active"])
    assert authenticate_token(token=token) is None


def test_last_use_is_written_once_a_minute(owner):
    row, token = create_api_token(user=owner, name="laptop")
    authenticate_token(token=token)
    row.refresh_from_db()
    assert row.last_used_at is not None
    with CaptureQueriesContext(
        connection,
    ) as queries:
        authenticate_token(token=token)
    assert len(queries) == 1  # the look-up alone

    earlier = timezone.now() - timedelta(seconds=61)
    ApiToken.objects.filter(pk=row.pk).update(last_used_at=earlier)
    authenticate_token(token=token)
    row.refresh_from_db()
    assert row.last_used_at > earlier


@pytest.mark.parametrize("name", ["", "   ", "n" * 81, "a\0b"])
def test_a_name_is_needed(owner, name):
    with pytest.raises(Refusal, match="1 to 80 printable characters"):
        create_api_token(user=owner, name=name)


def test_createtoken_prints_the_token_and_nothing_else(owner, capsys):
    call_command("createtoken", "owner")
    out, err = capsys.readouterr()
    assert err == ""
    assert authenticate_token(token=out.removesuffix("\n")) == owner


def test_createtoken_refuses_an_unknown_user(db, capsys):
    with pytest.raises(SystemExit) as ended:
        call_command("createtoken", "ownr")
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err == "There is no active user 'ownr': check the spelling, or create the user first.\n"


def test_createtoken_says_what_is_wrong_with_a_name(owner, capsys):
    with pytest.raises(SystemExit) as ended:
        call_command("createtoken", "owner", "--name", " ")
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err == "A token's name has 1 to 80 printable characters: name what will use it.\n"

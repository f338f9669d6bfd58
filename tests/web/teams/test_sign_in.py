"""Ten tries at a name, then a pause: a password is not found by trying."""

from __future__ import annotations

from datetime import timedelta

import pytest
from axes.models import AccessAttempt
from django.conf import settings as product
from django.test import Client
from django.urls import reverse
from django.utils import timezone

LOCKED = "Too many tries: wait 15 minutes."
WRONG = "This name and password do not belong together."


@pytest.fixture(autouse=True)
def limited(settings):
    settings.AXES_ENABLED = True


def sign_in(name: str, password: str, address: str = "10.0.0.1") -> str:
    """The page that answers; empty where it lets one in."""
    answer = Client(REMOTE_ADDR=address).post(reverse("sign-in"), {"username": name, "password": password})
    return "" if answer.status_code == 302 else answer.content.decode()


def fail(times: int, name: str = "owner") -> list[str]:
    return [sign_in(name, "wrong horse") for _ in range(times)]


@pytest.mark.parametrize("name", ["owner", "nobody-of-this-name"])
def test_after_ten_tries_the_right_password_is_not_looked_at(owner, name):
    pages = fail(10, name)
    assert all(WRONG in page for page in pages[:9])
    assert LOCKED in pages[9]
    assert LOCKED in sign_in(name, "correct horse")


def test_after_the_pause_it_is_and_tries_meanwhile_do_not_lengthen_it(owner):
    fail(10)
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=14))
    assert LOCKED in sign_in("owner", "correct horse")
    AccessAttempt.objects.update(attempt_time=timezone.now() - product.AXES_COOLOFF_TIME)
    assert sign_in("owner", "correct horse") == ""


def test_a_success_counts_anew(owner):
    for _ in range(2):
        fail(9)
        assert sign_in("owner", "correct horse") == ""


def test_others_and_other_addresses_go_on(owner, teammate):
    fail(10)
    assert sign_in("teammate", "correct horse") == ""
    assert sign_in("owner", "correct horse", address="10.0.0.2") == ""


def test_no_password_is_kept(owner):
    fail(1)
    (kept,) = AccessAttempt.objects.values_list("post_data", flat=True)
    assert "wrong horse" not in kept

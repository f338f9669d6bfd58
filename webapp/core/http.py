"""The request that a signed-in person's view gets."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails


class Request(HttpRequest):
    """For annotations only: behind `login_required` there is a user, and the htmx middleware was there."""

    user: User
    htmx: HtmxDetails

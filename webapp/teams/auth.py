"""Who calls the API: a bearer token, or the browser's own session with its CSRF token."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest
from ninja.errors import AuthorizationError
from ninja.security import HttpBearer
from ninja.security.base import AuthBase
from ninja.utils import check_csrf

from webapp.teams.services import authenticate_token


class ApiRequest(HttpRequest):
    """A request that passed one of the doors below."""

    user: User


class TokenBearer(HttpBearer):
    """`Authorization: Bearer tma_...`"""

    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        user = authenticate_token(token=token)
        if user is not None:
            request.user = user
        return user


class BrowserSession(AuthBase):
    """The session of someone who is signed in.

    It counts only where no Authorization header was sent: a wrong token is never made good by a cookie.
    """

    openapi_type = "apiKey"
    openapi_in = "cookie"
    openapi_name = settings.SESSION_COOKIE_NAME

    def __call__(self, request: HttpRequest) -> User | None:
        if "Authorization" in request.headers or not isinstance(request.user, User):
            return None
        if check_csrf(request) is not None:
            raise AuthorizationError(message="This page is out of date (its CSRF token is): reload it and try again.")
        return request.user

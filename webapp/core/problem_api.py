"""A NinjaAPI that speaks of every failure as a problem document (RFC 9457), with a sentence and no traceback."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import wraps
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, URLResolver, re_path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.parser import Parser

from webapp.core.errors import FieldProblem, Missing, Refusal
from webapp.core.wrong_fields import describe

log = logging.getLogger(__name__)
View = Callable[..., HttpResponseBase]


def problem(status: int, detail: str, *, errors: Sequence[FieldProblem] = ()) -> HttpResponse:
    """Return the problem document for `status`; `detail` is a sentence for the person."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JsonResponse(
        {**body, "errors": errors}, status=status, content_type="application/problem+json; charset=utf-8"
    )


class BoundedParser(Parser):
    """Reads JSON bodies up to Django's limit, also those that come in chunks and so announce no length."""

    def parse_body(self, request: HttpRequest) -> Any:
        if len(request.body) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise RequestDataTooBig
        return json.loads(request.body)


class ProblemAPI(NinjaAPI):
    """NinjaAPI whose errors, wrong addresses and wrong methods included, are problem documents."""

    def __init__(self, *, unauthorised: str, **options: Any) -> None:
        """`unauthorised` is the sentence for those whom no `auth` knows."""
        super().__init__(parser=BoundedParser(), docs_url=None, **options)
        self.unauthorised = unauthorised

    def set_default_exception_handlers(self) -> None:
        handlers: dict[type[Exception], Callable[[HttpRequest, Any], HttpResponse]] = {
            Refusal: _refused,
            Http404: _missing,
            ValidationError: _invalid,
            RequestDataTooBig: _too_big,
            AuthenticationError: self._unauthorised,
            HttpError: _http_error,
            Exception: _broken,
        }
        for kind, handler in handlers.items():
            self.add_exception_handler(kind, handler)

    def _unauthorised(self, request: HttpRequest, exc: AuthenticationError) -> HttpResponse:
        response = problem(401, self.unauthorised)
        response["WWW-Authenticate"] = "Bearer"
        return response

    def _get_urls(self) -> list[URLResolver | URLPattern]:
        urls = super()._get_urls()
        for url in urls:
            if isinstance(url, URLPattern):
                url.callback = _with_problems(url.callback)
        return [*urls, re_path("", _no_such_address)]


def _refused(request: HttpRequest, exc: Refusal) -> HttpResponse:
    return problem(exc.status, exc.sentence, errors=exc.errors)


def _missing(request: HttpRequest, exc: Http404) -> HttpResponse:
    # The same words for what is not there and for what is another team's: nobody learns that it exists.
    return problem(
        404, str(exc) if isinstance(exc, Missing) else f"There is nothing at {request.path} that you may see."
    )


def _invalid(request: HttpRequest, exc: ValidationError) -> HttpResponse:
    sentence, errors = describe(exc.errors)
    return problem(422, sentence, errors=errors)


def refuse_unknown_parameters(request: HttpRequest, schema: type[Schema]) -> None:
    """Raise Refusal (422) for a query parameter that `schema` does not have. Misspelt, a filter would find everything."""
    known = ", ".join(schema.model_fields)
    unknown = [name for name in request.GET if name not in schema.model_fields]
    if unknown:
        errors: list[FieldProblem] = [
            {"loc": [name], "message": f"This parameter does not exist: choose from {known}."} for name in unknown
        ]
        raise Refusal(f"There is no parameter '{unknown[0][:100]}': choose from {known}.", status=422, errors=errors)


def _too_big(request: HttpRequest, exc: Exception) -> HttpResponse:
    return problem(413, f"The body of a request may have at most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE:,} bytes.")


def _http_error(request: HttpRequest, exc: HttpError) -> HttpResponse:
    # ninja wraps whatever reading the body raised.
    cause = exc.__cause__
    if isinstance(cause, RequestDataTooBig):
        return _too_big(request, cause)
    if isinstance(cause, json.JSONDecodeError):
        return problem(400, f"The body is not JSON: {cause.msg} at line {cause.lineno}, column {cause.colno}.")
    if isinstance(cause, (ValueError, RecursionError)):
        return problem(400, "The body is not JSON that can be read: send UTF-8, nested less deeply.")
    return problem(exc.status_code, exc.message)


def _broken(request: HttpRequest, exc: Exception) -> HttpResponse:
    log.error("%s %s broke.", request.method, request.path, exc_info=exc)
    return problem(500, "The server failed at this request: its log tells your administrator why.")


@csrf_exempt
def _no_such_address(request: HttpRequest) -> HttpResponse:
    return problem(404, f"There is nothing at {request.path}: the OpenAPI document lists all addresses.")


def _with_problems(view: View) -> View:
    """Wrap a view for what happens outside ninja's own error handling."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            if any("\0" in value for _, values in request.GET.lists() for value in values):
                # PostgreSQL cannot even look for one.
                return problem(400, "A parameter contains a NUL character: remove it.")
            response = view(request, *args, **kwargs)
        except Http404 as exc:  # ninja's own page at the root of the API
            return _missing(request, exc)
        except TooManyFieldsSent:
            return problem(400, "The request has more parameters than any address takes: send fewer.")
        if isinstance(response, HttpResponseNotAllowed):
            allowed = response["Allow"]
            response = problem(405, f"{request.method} is not possible at this address: use {allowed}.")
            response["Allow"] = allowed
        return response

    return wrapped

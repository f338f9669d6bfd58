"""Django for machines: the same URLs and views, without what browsers need around them."""

from __future__ import annotations

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response


class BareHandler(ASGIHandler):
    """Django without middleware. Sessions, CSRF, messages and their like mean nothing to a node, which brings its secret.

    Under ASGI each of them costs two changes of thread a request: an answer takes 1.1 ms instead of 4.0.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        self._view_middleware: list[object] = []
        self._template_response_middleware: list[object] = []
        self._exception_middleware: list[object] = []
        self._middleware_chain = convert_exception_to_response(self._get_response_async)  # type: ignore[attr-defined]

# ruff: noqa: E402 - the parts may be imported only after Django is set up
"""The web process: static files and blobs stream past Django, websockets go to the consumers, the rest is Django's."""

from __future__ import annotations

import os
from urllib.parse import ParseResult
from wsgiref.headers import Headers

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

from django.core.asgi import get_asgi_application

_django = get_asgi_application()  # sets Django up; the imports below need it

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import OriginValidator
from django.conf import settings
from django.urls import re_path
from servestatic import ServeStaticASGI

from webapp.blobs.asgi import BlobServer
from webapp.core.bare_asgi import BareHandler
from webapp.jobs.blob_access import node_may_read_blob
from webapp.telemetry.routing import websocket_urlpatterns


class BrowserOriginValidator(OriginValidator):  # type: ignore[misc]
    """Lets a browser in from our own pages only, and clients without an Origin too.

    Every browser sends an Origin. What sends none has no cookie that a foreign page could abuse: it brings a token.
    """

    def valid_origin(self, parsed_origin: ParseResult | None) -> bool:
        return parsed_origin is None or bool(super().valid_origin(parsed_origin))


def _no_sniffing(headers: Headers, path: str, url: str) -> None:
    headers["X-Content-Type-Options"] = "nosniff"


def make_application() -> ProtocolTypeRouter:
    return ProtocolTypeRouter(
        {
            # In front of Django, not as its middleware: its synchronous iterators would be read whole before they are sent.
            "http": ServeStaticASGI(
                URLRouter(
                    [
                        re_path(r"^node/v1/blobs/(?P<digest>[^/]+)$", BlobServer(may_read=node_may_read_blob)),  # type: ignore[arg-type]
                        re_path(r"^node/v1/", BareHandler()),  # type: ignore[arg-type]
                        re_path(r"", _django),  # type: ignore[arg-type]
                    ]
                ),
                root=settings.STATIC_ROOT,
                prefix=settings.STATIC_URL,
                allow_all_origins=False,
                add_headers_function=_no_sniffing,
            ),
            "websocket": BrowserOriginValidator(
                AuthMiddlewareStack(URLRouter(websocket_urlpatterns)), settings.ALLOWED_HOSTS
            ),
        }
    )


application = make_application()

"""The root of all addresses: pages, the public API, the nodes' interface, health. Blobs and sockets: see asgi.py."""

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

from webapp.api import api
from webapp.node_api import node_api

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(pattern_name="job-list"), name="home"),
    path("", include("webapp.core.health")),
    path("", include("webapp.jobs.urls")),
    path("", include("webapp.fleet.urls")),
    path("", include("webapp.teams.urls")),
    # For pages that name no icon, such as the API's own.
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}img/logo.svg")),
    path("api/v1/", api.urls),
    path("node/v1/", node_api.urls),
    path("admin/", admin.site.urls),
]

"""The websockets. `webapp/asgi.py` puts Django's session and user in front of them."""

from django.urls import path

from webapp.telemetry.consumers import JobConsumer, JobListConsumer

websocket_urlpatterns = [
    path("ws/jobs/", JobListConsumer.as_asgi()),
    path("ws/jobs/<int:job_id>/", JobConsumer.as_asgi()),
]

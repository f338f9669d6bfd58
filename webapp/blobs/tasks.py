"""The Celery face of the services."""

from celery import shared_task

from webapp.blobs import services


@shared_task
def sweep_incoming() -> None:
    services.sweep_incoming()

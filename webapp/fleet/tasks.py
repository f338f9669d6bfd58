"""The Celery face of the services."""

from celery import shared_task

from webapp.fleet import services


@shared_task
def sweep_nodes() -> None:
    services.sweep_nodes()


@shared_task
def sync_broker_users() -> None:
    services.sync_broker_users()

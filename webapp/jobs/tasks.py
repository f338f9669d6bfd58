"""The Celery face of the services."""

from celery import shared_task

from webapp.jobs import services


@shared_task
def schedule_jobs() -> None:
    services.schedule_jobs()


@shared_task
def advance_attempt(attempt_id: int) -> None:
    services.advance_attempt(attempt_id=attempt_id)


@shared_task
def sweep_jobs() -> None:
    services.sweep_jobs()


@shared_task
def sweep_blobs() -> None:
    services.sweep_blobs()

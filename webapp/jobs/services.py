"""Every write to jobs: what people ask for here, the rest in the modules that this one names."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.template.defaultfilters import pluralize

from trainer.federated.early_stop import last_round, why_unaffordable
from trainer.spec import JobSpec
from webapp.core.errors import Refusal
from webapp.core.models import Transition
from webapp.jobs.advance import advance_attempt, sweep_jobs
from webapp.jobs.attempts import end_attempt
from webapp.jobs.dispatch import request, tell_browsers
from webapp.jobs.door import accept_artifact, accept_update, announce_rendezvous
from webapp.jobs.garbage import sweep_blobs
from webapp.jobs.models import Attempt, Job
from webapp.jobs.permissions import require_control, require_submit
from webapp.jobs.reports import record_report
from webapp.jobs.rounds import federated_of
from webapp.jobs.scheduling import schedule_jobs
from webapp.jobs.secure_door import accept_keys, accept_shares, accept_unmasking
from webapp.jobs.simulated_rounds import record_simulated
from webapp.jobs.spec_problems import parse_spec
from webapp.teams.models import Team

__all__ = [
    "accept_artifact",
    "accept_keys",
    "accept_shares",
    "accept_unmasking",
    "accept_update",
    "advance_attempt",
    "announce_rendezvous",
    "cancel_job",
    "record_report",
    "record_simulated",
    "resume_job",
    "schedule_jobs",
    "submit_job",
    "sweep_blobs",
    "sweep_jobs",
]


def submit_job(
    *, team: Team, owner: User, spec: JobSpec, cloned_from: Job | None = None, submission_key: str = ""
) -> Job:
    """Queue a job; with the key of an earlier submission of `owner`, return that one's job.

    Raises Refusal where `owner` may not create jobs in `team` (403), and for a key that stands for another spec (409).
    """
    require_submit(owner, team)
    if submission_key and (earlier := _submitted(team, owner, spec, submission_key)):
        return earlier
    planned = spec.federated.rounds if spec.federated else _epochs(spec)
    try:
        with transaction.atomic():
            job = Job.objects.create(
                team=team,
                owner=owner,
                name=spec.name,
                mode=spec.mode,
                spec_json=spec.model_dump(mode="json"),
                cloned_from=cloned_from,
                submission_key=submission_key,
                state=Job.State.QUEUED,
                progress_total=planned,
                progress_planned=planned,
            )
            Transition.objects.create(
                thread=job.thread, subject=job.thread, new=job.state, reason="Submitted.", actor=owner.get_username()
            )
            request("schedule_jobs")
            tell_browsers(job, "state")
    except IntegrityError:  # a second click, or a retry, was first
        if submission_key and (earlier := _submitted(team, owner, spec, submission_key)):
            return earlier
        raise
    return job


def _submitted(team: Team, owner: User, spec: JobSpec, key: str) -> Job | None:
    """The job that `owner` submitted with this key. Raises Refusal where it is another spec's, or another team's."""
    job = Job.objects.select_related("team", "owner").filter(owner=owner, submission_key=key).first()
    if job is not None and (job.team_id != team.pk or job.spec != spec):
        raise Refusal(f"This submission key stands for job {job.pk}, whose spec is another one: use a new key.")
    return job


def cancel_job(*, job: Job, actor: User) -> None:
    """End a job at its user's wish, whatever it is doing. Cancelling it again changes nothing.

    The stops go out from here, not from the conductor, so that a cancel works while that is busy or away. Raises Refusal for a
    job that has ended (409) and for who may not control it (403).
    """
    require_control(actor, job)
    name = actor.get_username()
    reason = f"Cancelled by {name}."
    while True:
        # The caller's row may be older than the job's last step, and so may this one a moment later: then look again.
        job.refresh_from_db(fields=["state", "num_retries"])
        if job.state == Job.State.CANCELLED:
            return
        if job.is_terminal:
            raise Refusal(f"Job {job.pk} has ended already: it is {Job.State(job.state).label.lower()}.")
        attempt = job.attempts.filter(state=Attempt.State.RUNNING).first()
        with transaction.atomic():
            if attempt is not None:
                attempt.job = job
                end_attempt(attempt=attempt, state=Attempt.State.CANCELLED, reason=reason, actor=name)
            elif job.state == Job.State.QUEUED:
                job.move_to(Job.State.CANCELLED, reason, actor=name, waiting_for=None)
                tell_browsers(job, "state")


def resume_job(*, job: Job, actor: User, rounds: int | None = None) -> None:
    """Queue an ended job again: a federated one goes on from its last closed round, a distributed one starts anew.

    `rounds` gives a federated job so many rounds more than it was to have, which is what a finished one needs. Raises Refusal
    for a job that has not ended, that finished and gets no more rounds, or that may have no more (409), and for who may not
    control it (403).
    """
    require_control(actor, job)
    # The caller's row may be older than the job's last round.
    job.refresh_from_db(fields=["state", "progress_done", "progress_total"])
    if rounds is not None:
        _require_more_rounds(job, rounds)
    elif job.state not in (Job.State.FAILED, Job.State.CANCELLED):
        more = " Say how many rounds more it should train." if _has_finished_rounds(job) else ""
        raise Refusal(
            f"Job {job.pk} is {Job.State(job.state).label.lower()}: only a failed or cancelled job can be resumed.{more}"
        )
    total = job.progress_total + (rounds or 0)
    if job.mode == "federated" and job.progress_done:
        reason = f"Resumed by {actor.get_username()}, from round {job.progress_done}."
        progress = job.progress_done
    else:
        reason, progress = f"Resumed by {actor.get_username()}, from the start.", 0
    if rounds is not None:
        reason = f"{reason.rstrip('.')}, with {rounds:,} more round{pluralize(rounds)}: {total:,} in all."
    fields = {"num_retries": 0, "progress_done": progress, "progress_total": total, "progress_planned": total}
    with transaction.atomic():
        if job.move_to(Job.State.QUEUED, reason, actor=actor.get_username(), **fields):
            request("schedule_jobs")
            tell_browsers(job, "state")


def _has_finished_rounds(job: Job) -> bool:
    return job.mode == "federated" and job.state == Job.State.FINISHED


def _require_more_rounds(job: Job, rounds: int) -> None:
    """Raise Refusal unless the job has ended and its spec would be valid with so many more rounds."""
    if job.mode != "federated":
        raise Refusal(f"Job {job.pk} is distributed and has no rounds: resume it without 'rounds'.")
    if not job.is_terminal:
        raise Refusal(
            f"Job {job.pk} is {Job.State(job.state).label.lower()}: only a job that has ended gets more rounds."
        )
    if rounds < 1:
        raise Refusal(f"'rounds' is the number of rounds to add, at least 1, not {rounds}.")
    total = job.progress_total + rounds
    spec = parse_spec({**job.spec_json, "federated": {**job.spec_json["federated"], "rounds": total}})
    if not isinstance(spec, JobSpec):
        raise Refusal(f"Job {job.pk} cannot have {total:,} rounds. {spec[0].message}")
    federated = federated_of(spec)
    if last_round(federated, total) <= job.progress_done:
        raise Refusal(why_unaffordable(federated, job.progress_done + 1))


def _epochs(spec: JobSpec) -> int:
    assert spec.distributed is not None  # the spec's validators leave exactly the section of its mode
    return spec.distributed.epochs

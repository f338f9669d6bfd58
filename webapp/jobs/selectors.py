"""Every non-trivial read of jobs. A team's job does not exist for who is not in the team."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import QuerySet

from trainer.federated.draw import group_by_label, label_shares
from trainer.federated.early_stop import last_round
from trainer.federated.privacy import epsilon_after
from trainer.sources import SpecProblem, check_fit
from trainer.spec import JobSpec
from webapp.core.errors import Missing
from webapp.core.models import Transition
from webapp.fleet.selectors import known_sources, usable_nodes
from webapp.jobs.models import Artifact, Job, Round
from webapp.jobs.planner import listed
from webapp.jobs.server_data import check_server_data
from webapp.jobs.spec_problems import parse_spec
from webapp.jobs.waiting import Waiting
from webapp.teams.models import Team
from webapp.teams.selectors import teams_of

__all__ = [
    "Waiting",
    "artifacts_of",
    "check_spec",
    "get_job",
    "history_of",
    "jobs_visible_to",
    "rounds_of",
]


def jobs_visible_to(user: User | AnonymousUser) -> QuerySet[Job]:
    """The jobs of the user's teams; all of them for a site administrator; none for nobody."""
    if isinstance(user, AnonymousUser):
        return Job.objects.none()
    if user.is_staff:
        return Job.objects.all()
    return Job.objects.filter(team__in=teams_of(user))


def get_job(user: User | AnonymousUser, job_id: int) -> Job:
    """The job with its team and owner. Raises Missing (a 404) alike for one that is not there and for somebody else's."""
    # A larger number than the column holds is no id, and an error on some databases.
    job = jobs_visible_to(user).select_related("team", "owner").filter(pk=job_id).first() if job_id < 2**63 else None
    if job is None:
        raise Missing(f"There is no job {job_id} that you may see.")
    return job


def rounds_of(job: Job) -> QuerySet[Round]:
    """The rounds of all attempts, in order, each with its ledger by client index. Three queries, however many rounds."""
    rounds = Round.objects.filter(attempt__job=job).select_related("attempt").order_by("attempt_id", "number")
    return rounds.prefetch_related("participations__assignment__node", "participations__counted_in")


def history_of(job: Job) -> QuerySet[Transition]:
    """Every change of state of the job, its attempts and rounds, oldest first."""
    return Transition.objects.filter(thread=job.thread).order_by("id")


def artifacts_of(job: Job) -> QuerySet[Artifact]:
    """What the job left behind, newest first."""
    return job.artifacts.order_by("-id")


def check_spec(*, team: Team, raw: dict[str, Any]) -> JobSpec | list[SpecProblem]:
    """Return the spec, or everything that is wrong with it, as far as the server can know before any node is asked."""
    spec = parse_spec(raw)
    if not isinstance(spec, JobSpec):
        return spec
    sources = {source.schema.name: source.schema for source in known_sources(team)}
    source = sources.get(spec.data.source)
    if source is None:
        listed = ", ".join(f"'{name}'" for name in sources)
        sentence = f"No data source '{spec.data.source}' is known to {team.name}. There are: {listed}."
        return [SpecProblem(loc=("data", "source"), message=sentence)]
    own = check_server_data(spec, source)
    return [
        *check_fit(spec, source),
        *own,
        *_check_nodes(spec, team),
        *_check_labels(spec, team),
        *_check_budget(spec),
    ] or spec


def _check_nodes(spec: JobSpec, team: Team) -> list[SpecProblem]:
    """The nodes that the job names are the team's, or the job would wait for ever for a misspelt one."""
    if spec.federated is None or not spec.federated.clients.nodes:
        return []
    known = set(usable_nodes(team).values_list("name", flat=True))
    missing = [name for name in spec.federated.clients.nodes if name not in known]
    if not missing:
        return []
    sentence = f"{team.name} has no node {listed(missing)}. There are: {listed(sorted(known)) or 'none'}."
    return [SpecProblem(loc=("federated", "clients", "nodes"), message=sentence)]


def _check_labels(spec: JobSpec, team: Team) -> list[SpecProblem]:
    """So many of the team's nodes carry each label as a round draws of it, or the job would wait for ever."""
    clients = spec.federated.clients if spec.federated else None
    if clients is None or not clients.draw_labels:
        return []
    nodes = usable_nodes(team).filter(name__in=clients.nodes) if clients.nodes else usable_nodes(team)
    groups = group_by_label(dict(enumerate(nodes.values_list("labels", flat=True))), clients.draw_labels)
    for label, share in label_shares(clients).items():
        if (num := len(groups[label])) < share:
            sentence = (
                f"Each round draws {share} with the label '{label}', and {num} of {team.name}'s nodes that may take part "
                f"{'counts' if num == 1 else 'count'} for it: draw fewer clients, or label more nodes."
            )
            return [SpecProblem(loc=("federated", "clients", "draw_labels"), message=sentence)]
    return []


def _check_budget(spec: JobSpec) -> list[SpecProblem]:
    """The first round is within the epsilon that the job may spend."""
    federated = spec.federated
    if federated is None or federated.privacy is None or last_round(federated, federated.rounds) > 0:
        return []
    cost = epsilon_after(federated.privacy, federated.clients, 1)
    marked = (
        f"One round alone costs an epsilon of {cost:.3g}, and `federated.privacy.max_epsilon` is "
        f"{federated.privacy.max_epsilon:g}: raise it, or raise `federated.privacy.noise_multiplier`."
    )
    return [SpecProblem.saying(("federated", "privacy", "max_epsilon"), marked)]

"""Who may do what with a job."""

from __future__ import annotations

from django.contrib.auth.models import User

from webapp.core.errors import Refusal
from webapp.jobs.models import Job
from webapp.teams.models import Membership, Team
from webapp.teams.selectors import role_in


def can_submit(user: User, team: Team) -> bool:
    """Members and maintainers of the team, and site administrators. Viewers watch."""
    return user.is_staff or role_in(user, team) in (Membership.Role.MEMBER, Membership.Role.MAINTAINER)


def require_submit(user: User, team: Team) -> None:
    """Raise Refusal (403) unless `user` may submit jobs to `team`."""
    if not can_submit(user, team):
        raise Refusal(f"You watch {team.name} as a viewer: ask a maintainer for the role of a member.", status=403)


def can_control(user: User, job: Job) -> bool:
    """Whether `user` may cancel and resume `job`: its owner while in the team, the team's maintainers, site administrators."""
    if user.is_staff:
        return True
    role = role_in(user, job.team)
    return role == Membership.Role.MAINTAINER or (role == Membership.Role.MEMBER and job.owner_id == user.pk)


def require_control(user: User, job: Job) -> None:
    """Raise Refusal (403) unless `user` may control `job`."""
    if not can_control(user, job):
        raise Refusal(
            f"Job {job.pk} belongs to {job.owner.get_username()}: ask them, or a maintainer of {job.team.name}.",
            status=403,
        )

"""Run in a process of its own: makes the rows that a stream needs, and prints the node's and the attempt's id."""

import django


def main() -> None:
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command

    from webapp.fleet.models import Node
    from webapp.jobs.models import Assignment, Attempt, Job
    from webapp.teams.models import Team

    call_command("migrate", verbosity=0)
    team = Team.objects.create(name="t", slug="t")
    owner = User.objects.create(username="owner")
    job = Job.objects.create(team=team, owner=owner, name="j", mode="federated", state="running", spec_json={})
    node = Node.objects.create(name="node-1", state="online", secret_hash="0" * 64)
    attempt = Attempt.objects.create(job=job, number=1, state="running")
    Assignment.objects.create(attempt=attempt, node=node, index=0, slots=1, state="active")
    print(node.pk, attempt.pk)


if __name__ == "__main__":
    main()

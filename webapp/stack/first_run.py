"""What a home's database needs before its processes start: tables, the administrator, a team, tokens of local nodes."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, transaction

from webapp.stack.home import Home, StartError, keep_secret, write_private

if TYPE_CHECKING:
    from django.contrib.auth.models import User

ADMIN = "admin"
TEAM = "Demo"


def prepare(home: Home) -> bool:
    """Bring tables and static files up to date. Return True when the administrator was made, on the first run."""
    try:
        django.setup()  # harmless where it was done
        call_command("migrate", verbosity=0)
    except ImproperlyConfigured as error:
        raise StartError(str(error)) from error
    except DatabaseError as error:
        reason = " ".join(str(error).split())
        raise StartError(f"The database did not answer: {reason} Check DATABASE_URL and the disk.") from error
    _collect_static(home)
    return _create_administrator(home)


def prepare_node(home: Home, *, number: int, num_nodes: int, server_url: str) -> None:
    """Give a local node its node.toml and, until it has joined, a fresh one-time token in a file of its own.

    A node that joined keeps the server's address; this one follows when the stack moves to another port.
    """
    from trainer.agent.home import Home as NodeHome
    from webapp.fleet import services

    folder = home.node(number)
    folder.mkdir(parents=True, exist_ok=True)
    policy = folder / "node.toml"
    if not policy.exists():
        slots = max(2, (os.cpu_count() or 1) // num_nodes)
        # JSON's strings and lists are TOML's.
        write_private(policy, f"slots = {slots}\nshared_blob_dirs = {json.dumps([str(settings.BLOB_DIR)])}\n")
    node_home = NodeHome(folder)
    if identity := node_home.load_identity():
        if identity.server_url != server_url:
            node_home.save_identity(identity.model_copy(update={"server_url": server_url}))
    else:
        _, token = services.create_enrolment_token(actor=administrator(), preapproved=True, ttl=timedelta(hours=1))
        write_private(folder / "join-token", token + "\n")


def _create_administrator(home: Home) -> bool:
    from django.contrib.auth.models import User

    from webapp.teams import services
    from webapp.teams.models import Membership

    if User.objects.filter(is_superuser=True).exists():
        return False
    # The file first: a password that nobody can read would lock everyone out.
    password = keep_secret(home.admin_password)
    with transaction.atomic():
        admin = User.objects.create_superuser(ADMIN, password=password)
        team = services.create_team(name=TEAM)
        services.add_member(team=team, user=admin, role=Membership.Role.MAINTAINER)
    return True


def administrator() -> User:
    """Return the first administrator, in whose name local nodes join."""
    from django.contrib.auth.models import User

    found = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
    if found is None:
        raise StartError("There is no active administrator: make one with 'manage.py createsuperuser'.")
    return found


def _collect_static(home: Home) -> None:
    """Hashing and compressing takes seconds; do it only when a source file changed."""
    sources = [Path(entry[1] if isinstance(entry, tuple) else entry) for entry in settings.STATICFILES_DIRS]
    state = hashlib.sha256()
    for folder in sources:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                facts = path.stat()
                state.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    stamp = home.root / "static.stamp"
    if stamp.is_file() and stamp.read_text() == state.hexdigest() and Path(settings.STATIC_ROOT).is_dir():
        return
    try:
        call_command("collectstatic", interactive=False, clear=True, verbosity=0)
    except OSError as error:
        raise StartError(f"The static files could not be written ({error.strerror}): check the disk.") from error
    stamp.write_text(state.hexdigest())

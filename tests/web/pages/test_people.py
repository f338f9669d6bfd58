"""Every page and every act, for everyone. A route that is not in the table fails the last test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from tests.conftest import browser_of
from webapp.fleet import services as fleet
from webapp.teams import services as teams

PEOPLE = ("owner", "teammate", "stranger", "nobody", "admin")


@dataclass(frozen=True)
class Route:
    """`statuses` in the order of PEOPLE; nobody's "in" is the way to the sign-in."""

    method: str
    arguments: Callable[[Any], dict[str, Any]]
    statuses: tuple[int | str, ...]
    data: dict[str, str] | None = None


def none(things: Any) -> dict[str, Any]:
    return {}


def of_job(things: Any) -> dict[str, Any]:
    return {"job_id": things.job.pk}


def of_node(things: Any) -> dict[str, Any]:
    return {"node_id": things.node.pk}


def of_member(things: Any) -> dict[str, Any]:
    return {"team_slug": things.team.slug, "user_id": things.teammate.pk}


EVERYONE = (200, 200, 200, "in", 200)
TEAM = (200, 200, 404, "in", 200)
ADMIN = (404, 404, 404, "in", 200)
ADMIN_ACT = (404, 404, 404, "in", 302)

TABLE = {
    "home": Route("get", none, (302, 302, 302, 302, 302)),
    "sign-in": Route("get", none, (302, 302, 302, 200, 302)),
    "sign-out": Route("post", none, (302, 302, 302, 302, 302)),
    "job-list": Route("get", none, EVERYONE),
    "job-new": Route("get", none, EVERYONE),
    "job-check": Route("post", none, EVERYONE),
    "job-example": Route("post", lambda _: {"preset": "digits-federated"}, (302, 302, 302, "in", 302)),
    "job-page": Route("get", of_job, TEAM),
    "job-part": Route("get", lambda things: {"job_id": things.job.pk, "part": "state"}, TEAM),
    "job-spec": Route("get", of_job, TEAM),
    "job-clone": Route("get", of_job, (302, 302, 404, "in", 302)),
    "job-cancel": Route("post", of_job, (302, 403, 404, "in", 302)),
    "job-resume": Route("post", of_job, (302, 403, 404, "in", 302)),
    "artifact-download": Route(
        "get", lambda things: {"job_id": things.job.pk, "artifact_id": things.job.artifacts.get().pk}, TEAM
    ),
    "node-list": Route("get", none, ADMIN),
    "node-add": Route("get", none, ADMIN),
    "node-arrival": Route("get", lambda things: {"token_id": things.token.pk}, ADMIN),
    "node-page": Route("get", of_node, ADMIN),
    "node-approve": Route("post", of_node, ADMIN_ACT),
    "node-refuse": Route("post", of_node, ADMIN_ACT),
    "node-revoke": Route("post", of_node, ADMIN_ACT),
    "source-list": Route("get", none, EVERYONE),
    "team-page": Route("get", none, EVERYONE),
    "team-create": Route("post", none, ADMIN_ACT, {"name": "Radiology"}),
    "account-create": Route(
        "post", lambda things: {"team_slug": things.team.slug}, ADMIN, {"username": "new", "role": "member"}
    ),
    "password-change": Route("get", none, EVERYONE),
    "member-add": Route("post", lambda things: {"team_slug": things.team.slug}, (403, 403, 404, "in", 302)),
    "member-role": Route("post", of_member, (403, 403, 404, "in", 302), {"role": "viewer"}),
    "member-remove": Route("post", of_member, (403, 403, 404, "in", 302)),
    "token-create": Route("post", none, EVERYONE, {"name": "laptop"}),
    "token-revoke": Route("post", lambda things: {"token_id": things.api_token.pk}, (302, 404, 404, "in", 404)),
}


@dataclass
class Things:
    team: Any
    job: Any
    node: Any
    token: Any
    api_token: Any
    teammate: Any


@pytest.fixture
def things(team, owner, teammate, ran, node, admin) -> Things:
    token, _ = fleet.create_enrolment_token(actor=admin)
    api_token, _ = teams.create_api_token(user=owner, name="script")
    return Things(team, ran, node, token, api_token, teammate)


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("name", TABLE)
def test_who_gets_what(name: str, person: str, things: Things, request: pytest.FixtureRequest):
    route = TABLE[name]
    expected = route.statuses[PEOPLE.index(person)]
    user = None if person == "nobody" else request.getfixturevalue(person)

    answer = getattr(browser_of(user), route.method)(reverse(name, kwargs=route.arguments(things)), route.data or {})

    answer.close()
    if expected == "in":
        assert answer.status_code == 302
        assert answer["Location"].startswith(reverse("sign-in"))
    else:
        assert answer.status_code == expected


@pytest.mark.parametrize("name", [name for name, route in TABLE.items() if route.method == "post"])
def test_acts_are_posted_only(name: str, things: Things, owner):
    url = reverse(name, kwargs=TABLE[name].arguments(things))
    assert browser_of(owner).get(url).status_code == 405


def test_every_page_is_in_the_table():
    pages = {pattern.name for pattern in _patterns(get_resolver().url_patterns) if _is_page(pattern)}
    assert pages == set(TABLE)


def _patterns(patterns: list[URLPattern | URLResolver]) -> Iterator[URLPattern]:
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            yield pattern
        elif pattern.app_name != "admin":
            yield from _patterns(pattern.url_patterns)


def _is_page(pattern: URLPattern) -> bool:
    """The API, the nodes' interface and health have tables of their own."""
    module = pattern.callback.__module__
    return pattern.name == "home" or (module.endswith("views") and module.startswith("webapp."))

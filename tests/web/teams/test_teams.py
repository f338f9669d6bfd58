"""Teams, their members and roles."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from webapp.core.errors import Refusal
from webapp.core.models import AuditEntry
from webapp.teams import selectors, services
from webapp.teams.models import Team


def test_slugs_are_ascii_and_numbered(db):
    slugs = [services.create_team(name=name).slug for name in ("Data Lab", "Data-Lab", "数据组", "影像组")]
    assert slugs == ["data-lab", "data-lab-2", "team", "team-2"]


@pytest.mark.parametrize("name", [" Cardiology ", "cardiology", "CARDIOLOGY"])
def test_a_name_is_taken_once_whatever_its_capitals(team, name):
    with pytest.raises(Refusal, match="There is a team 'Cardiology' already"):
        services.create_team(name=name)
    with pytest.raises(IntegrityError), transaction.atomic():
        Team.objects.create(name=name.strip(), slug="another")


def test_capitals_are_not_only_latin(db):
    services.create_team(name="Ärzte")
    with pytest.raises(Refusal, match="There is a team 'Ärzte' already"):
        services.create_team(name="ärzte")


@pytest.mark.parametrize("name", ["", " ", "n" * 81])
def test_a_name_has_1_to_80_characters(db, name):
    with pytest.raises(Refusal, match="1 to 80"):
        services.create_team(name=name)


def test_members_come_change_and_go(team, stranger, admin):
    services.add_member(team=team, user=stranger, role="viewer", actor=admin)
    assert selectors.role_in(stranger, team) == "viewer"
    services.change_role(team=team, user=stranger, role="maintainer", actor=admin)
    assert selectors.role_in(stranger, team) == "maintainer"
    services.remove_member(team=team, user=stranger, actor=admin)
    assert selectors.role_in(stranger, team) is None
    acts = AuditEntry.objects.order_by("id").values_list("act", "target", "actor_name")
    assert list(acts) == [
        ("add_member", "stranger in team cardiology", "admin"),
        ("change_role", "stranger in team cardiology", "admin"),
        ("remove_member", "stranger in team cardiology", "admin"),
    ]


def test_a_member_is_added_once(team, owner):
    with pytest.raises(Refusal, match="owner is in Cardiology already"):
        services.add_member(team=team, user=owner, role="viewer")
    assert selectors.role_in(owner, team) == "member"
    assert not AuditEntry.objects.exists()


def test_who_is_not_in_the_team_cannot_change_or_leave(team, stranger):
    with pytest.raises(Refusal, match="stranger is not in Cardiology"):
        services.change_role(team=team, user=stranger, role="viewer")
    with pytest.raises(Refusal, match="stranger is not in Cardiology"):
        services.remove_member(team=team, user=stranger)


def test_an_unknown_role_is_refused(team, stranger):
    with pytest.raises(Refusal, match="There is no role 'king': choose viewer, member, maintainer"):
        services.add_member(team=team, user=stranger, role="king")


def test_teams_of_each_person(team, owner, stranger, admin):
    assert [t.slug for t in selectors.teams_of(owner)] == ["cardiology"]
    assert [t.slug for t in selectors.teams_of(stranger)] == ["oncology"]
    assert [t.slug for t in selectors.teams_of(admin)] == []
    assert [t.slug for t in selectors.teams_visible_to(admin)] == ["cardiology", "oncology"]


def test_maintainers_and_administrators_manage(team, owner, teammate, stranger, admin):
    services.change_role(team=team, user=teammate, role="maintainer")
    people = {p.username: selectors.can_manage(p, team) for p in (owner, teammate, stranger, admin)}
    assert people == {"owner": False, "teammate": True, "stranger": False, "admin": True}


class TestTeamForJob:
    def test_the_only_one_is_meant(self, team, owner):
        assert selectors.team_for_job(owner) == team
        assert selectors.team_for_job(owner, "cardiology") == team

    def test_of_several_one_must_be_named(self, team, owner):
        services.add_member(team=services.create_team(name="Biology"), user=owner, role="member")
        with pytest.raises(Refusal, match=r"Choose the team .* Your teams: biology, cardiology\.") as refused:
            selectors.team_for_job(owner)
        assert refused.value.status == 422

    def test_anothers_team_does_not_exist(self, team, stranger):
        sentences = []
        for slug in ("cardiology", "nowhere"):
            with pytest.raises(Refusal) as refused:
                selectors.team_for_job(stranger, slug)
            sentences.append(refused.value.sentence.replace(slug, "X"))
        assert sentences == ["You are in no team 'X'. Your teams: oncology."] * 2

    def test_who_is_in_no_team_is_told_so(self, team, admin):
        with pytest.raises(Refusal, match="You are in no team yet"):
            selectors.team_for_job(admin)

    def test_an_administrator_may_name_any(self, team, admin):
        assert selectors.team_for_job(admin, "cardiology") == team


def test_lost_race_for_a_name(team, monkeypatch):
    """Another request takes the name between the look and the write."""
    monkeypatch.setattr(services, "_free_slug", lambda name: "cardiology")
    with pytest.raises(Refusal, match="created at this moment"):
        services.create_team(name="Cardiologia")
    assert Team.objects.count() == 1

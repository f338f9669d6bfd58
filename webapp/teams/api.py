"""The API's own account: who one is, one's teams and one's tokens."""

from __future__ import annotations

from datetime import datetime

from django.shortcuts import get_object_or_404
from ninja import Router, Schema, Status

from webapp.teams import selectors, services
from webapp.teams.auth import ApiRequest
from webapp.teams.models import ApiToken

router = Router(tags=["account"])


class TeamOut(Schema):
    slug: str
    name: str
    role: str


class MeOut(Schema):
    username: str
    is_administrator: bool
    teams: list[TeamOut]


class MemberOut(Schema):
    username: str
    role: str
    joined_at: datetime


class TokenIn(Schema):
    name: str


class TokenOut(Schema):
    id: int
    name: str
    hint: str
    """The token's first characters."""
    created_at: datetime
    last_used_at: datetime | None
    """To the minute."""


class NewTokenOut(TokenOut):
    token: str
    """The token itself. It is shown this once."""


@router.get("/me", response=MeOut)
def read_me(request: ApiRequest) -> MeOut:
    """Who the token or session belongs to."""
    teams = [TeamOut(slug=m.team.slug, name=m.team.name, role=m.role) for m in selectors.memberships_of(request.user)]
    return MeOut(username=request.user.username, is_administrator=request.user.is_staff, teams=teams)


@router.get("/teams/{slug:slug}/members", response=list[MemberOut])
def list_members(request: ApiRequest, slug: str) -> list[MemberOut]:
    """The members of a team, to its members."""
    team = get_object_or_404(selectors.teams_visible_to(request.user), slug=slug)
    return [MemberOut(username=m.user.username, role=m.role, joined_at=m.joined_at) for m in selectors.members_of(team)]


@router.get("/tokens", response=list[TokenOut])
def list_tokens(request: ApiRequest) -> list[ApiToken]:
    """One's own tokens that still open something."""
    return list(selectors.tokens_of(request.user))


@router.post("/tokens", response={201: NewTokenOut})
def create_token(request: ApiRequest, body: TokenIn) -> Status[NewTokenOut]:
    """Make a token for oneself. The answer is the only place where it is shown."""
    row, token = services.create_api_token(user=request.user, name=body.name, actor=request.user)
    return Status(201, NewTokenOut(token=token, **TokenOut.from_orm(row).dict()))


@router.delete("/tokens/{int:token_id}", response={204: None})
def revoke_token(request: ApiRequest, token_id: int) -> Status[None]:
    """End one of one's own tokens at once."""
    services.revoke_api_token(
        token=get_object_or_404(selectors.tokens_of(request.user), pk=token_id), actor=request.user
    )
    return Status(204, None)

"""Signing in and out, the team's members, and one's own API tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView, PasswordChangeView
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse, reverse_lazy
from django.views.decorators.http import require_GET, require_POST

from webapp.core.errors import Refusal
from webapp.core.http import Request
from webapp.teams import accounts, selectors, services
from webapp.teams.forms import PasswordForm, SignInForm
from webapp.teams.models import ApiToken, Membership, Team


class SignIn(LoginView):
    template_name = "teams/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("sign-in")


@require_GET
@login_required
def team_page(request: Request) -> HttpResponse:
    return _render(request)


@require_POST
@login_required
def member_add(request: Request, team_slug: str) -> HttpResponse:
    team = _managed_team(request, team_slug)
    name = request.POST.get("username", "").strip()

    def add() -> str:
        user = User.objects.filter(username=name, is_active=True).first()
        if user is None:
            raise Refusal(f"There is no user '{name}': an administrator creates accounts, on this page.", status=422)
        services.add_member(team=team, user=user, role=request.POST.get("role", ""), actor=request.user)
        return f"{user.username} is in {team.name}."

    return _say(request, add, team)


@require_POST
@login_required
def member_role(request: Request, team_slug: str, user_id: int) -> HttpResponse:
    team = _managed_team(request, team_slug)
    user = get_object_or_404(User, pk=user_id, memberships__team=team)

    def change() -> str:
        services.change_role(team=team, user=user, role=request.POST.get("role", ""), actor=request.user)
        return f"{user.username} has a new role."

    return _say(request, change, team)


@require_POST
@login_required
def member_remove(request: Request, team_slug: str, user_id: int) -> HttpResponse:
    team = _managed_team(request, team_slug)
    user = get_object_or_404(User, pk=user_id, memberships__team=team)

    def remove() -> str:
        services.remove_member(team=team, user=user, actor=request.user)
        return f"{user.username} is no longer in {team.name}."

    return _say(request, remove, team)


@require_POST
@login_required
def team_create(request: Request) -> HttpResponse:
    """An administrator's act: the team starts without members."""
    _require_administrator(request)
    try:
        team = services.create_team(name=request.POST.get("name", ""), actor=request.user)
    except Refusal as refusal:
        messages.error(request, refusal.sentence)
        return redirect("team-page")
    messages.success(request, f"The team {team.name} is there. Add its members.")
    return redirect(f"{reverse('team-page')}?team={team.slug}")


@require_POST
@login_required
def account_create(request: Request, team_slug: str) -> HttpResponse:
    """An administrator's act: a new person in the team, whose password is shown this once."""
    _require_administrator(request)
    team = get_object_or_404(Team, slug=team_slug)
    try:
        user, password = accounts.create_account(
            username=request.POST.get("username", ""),
            team=team,
            role=request.POST.get("role", ""),
            actor=request.user,
        )
    except Refusal as refusal:
        messages.error(request, refusal.sentence)
        return redirect(f"{reverse('team-page')}?team={team.slug}")
    return _render(request, team_slug=team.slug, new_account=user, new_password=password)


class ChangePassword(PasswordChangeView):
    template_name = "teams/change_password.html"
    form_class = PasswordForm
    success_url = reverse_lazy("team-page")

    def form_valid(self, form: PasswordChangeForm) -> HttpResponse:
        messages.success(self.request, "Your password is changed. Your other sessions are signed out.")
        return super().form_valid(form)


@require_POST
@login_required
def token_create(request: Request) -> HttpResponse:
    """Make a token and show it, this once."""
    try:
        token, secret = services.create_api_token(
            user=request.user, name=request.POST.get("name", ""), actor=request.user
        )
    except Refusal as refusal:
        messages.error(request, refusal.sentence)
        return redirect("team-page")
    return _render(request, new_token=token, new_secret=secret)


@require_POST
@login_required
def token_revoke(request: Request, token_id: int) -> HttpResponse:
    token = get_object_or_404(ApiToken, pk=token_id, user=request.user)
    services.revoke_api_token(token=token, actor=request.user)
    messages.success(request, f"The token '{token.name}' opens nothing any more.")
    return redirect("team-page")


def _render(request: Request, *, team_slug: str = "", **once: Any) -> HttpResponse:
    """`once`: secrets that are shown in this answer, and never again."""
    teams = list(selectors.teams_visible_to(request.user))
    wanted = team_slug or request.GET.get("team")
    team = next((t for t in teams if t.slug == wanted), teams[0] if teams else None)
    context = {
        "teams": teams,
        "team": team,
        "members": selectors.members_of(team) if team else [],
        "can_manage": team is not None and selectors.can_manage(request.user, team),
        "roles": Membership.Role.choices,
        "tokens": selectors.tokens_of(request.user),
        **once,
    }
    response = render(request, "teams/team_page.html", context)
    if once:
        response["Cache-Control"] = "no-store"
    return response


def _require_administrator(request: Request) -> None:
    if not request.user.is_staff:
        raise Http404


def _managed_team(request: Request, slug: str) -> Team:
    """The team, to its maintainers. Its other members are refused; to strangers it is not there."""
    team = get_object_or_404(selectors.teams_visible_to(request.user), slug=slug)
    if not selectors.can_manage(request.user, team):
        raise PermissionDenied(f"Only maintainers change who is in {team.name}: ask one of them.")
    return team


def _say(request: Request, act: Callable[[], str], team: Team) -> HttpResponse:
    try:
        messages.success(request, act())
    except Refusal as refusal:
        messages.error(request, refusal.sentence)
    return redirect(f"{reverse('team-page')}?team={team.slug}")

from django.urls import path

from webapp.teams import views

urlpatterns = [
    path("sign-in/", views.SignIn.as_view(), name="sign-in"),
    path("sign-out/", views.sign_out, name="sign-out"),
    path("password/", views.ChangePassword.as_view(), name="password-change"),
    path("team/", views.team_page, name="team-page"),
    path("team/create/", views.team_create, name="team-create"),
    path("team/<slug:team_slug>/accounts/create/", views.account_create, name="account-create"),
    path("team/<slug:team_slug>/members/add/", views.member_add, name="member-add"),
    path("team/<slug:team_slug>/members/<int:user_id>/role/", views.member_role, name="member-role"),
    path("team/<slug:team_slug>/members/<int:user_id>/remove/", views.member_remove, name="member-remove"),
    path("team/tokens/create/", views.token_create, name="token-create"),
    path("team/tokens/<int:token_id>/revoke/", views.token_revoke, name="token-revoke"),
]

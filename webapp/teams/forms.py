"""Forms of the team's pages."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.forms import BaseForm


class SignInForm(AuthenticationForm):
    """Django's own, in the look of the house."""

    error_messages = {
        "invalid_login": "This name and password do not belong together. Capitals count in both.",
        "inactive": "This account is switched off: ask an administrator.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "User name"
        _dress(self)


class PasswordForm(PasswordChangeForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _dress(self)


def _dress(form: BaseForm) -> None:
    for field in form.fields.values():
        field.widget.attrs["class"] = "input"

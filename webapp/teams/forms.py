"""Forms of the team's pages."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.core.exceptions import ValidationError
from django.forms import BaseForm


class SignInForm(AuthenticationForm):
    """Django's own, in the look of the house."""

    error_messages = {
        "invalid_login": "This name and password do not belong together. Capitals count in both.",
        "locked": "Too many tries: wait 15 minutes.",
        "inactive": "This account is switched off: ask an administrator.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "User name"
        _dress(self)

    def get_invalid_login_error(self) -> ValidationError:
        # axes marks the request, and looks at no password while it does.
        if getattr(self.request, "axes_locked_out", False):
            return ValidationError(self.error_messages["locked"], code="locked")
        return super().get_invalid_login_error()


class PasswordForm(PasswordChangeForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _dress(self)


def _dress(form: BaseForm) -> None:
    for field in form.fields.values():
        field.widget.attrs["class"] = "input"

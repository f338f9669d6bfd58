"""Epsilon, for people."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context

from django import template

from webapp.jobs.form_values import text_of

register = template.Library()
register.filter("as_typed", text_of)

_UP = Context(prec=3, rounding=ROUND_CEILING)

STRONG, USUAL = 1.0, 10.0
"""Tiers of Ponomareva et al. 2023, How to DP-fy ML, section 5.2."""


@register.filter
def epsilon(value: float) -> str:
    """Return it with three digits, rounded up: what is promised must hold."""
    return f"{_UP.create_decimal_from_float(value):,f}" if math.isfinite(value) else "∞"


@register.filter
def strength(value: float) -> str:
    """Return what an epsilon is held to be worth."""
    return "strong" if value <= STRONG else "usual" if value <= USUAL else "weak"


@register.filter
def strength_tone(value: float) -> str:
    return "tone-good" if value <= STRONG else "" if value <= USUAL else "tone-warn"

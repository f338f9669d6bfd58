"""Icons, states, times and quantities, the same on every page."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from trainer.secure import keys
from webapp.core.states import Stateful

register = template.Library()

LOOKS: dict[str, tuple[str, str]] = {
    # state -> (tone, icon); the word comes from the model's own State.
    "queued": ("wait", "clock"),
    "running": ("live", "play"),
    "finished": ("good", "check"),
    "failed": ("bad", "cross"),
    "cancelled": ("calm", "ban"),
    "pending": ("wait", "clock"),
    "online": ("good", "dot"),
    "offline": ("bad", "ring"),
    "revoked": ("calm", "ban"),
    "open": ("live", "play"),
    "closing": ("live", "sum"),
    "closed": ("good", "check"),
    "asked": ("wait", "clock"),
    "returned": ("good", "check"),
    "refused": ("bad", "ban"),
    "late": ("warn", "clock"),
    "lost": ("bad", "ring"),
    "active": ("live", "play"),
    "done": ("good", "check"),
    "releasing": ("warn", "stop"),
    "released": ("calm", "check"),
}
"""A state is a colour, an icon and a word, on every page the same."""


@register.simple_tag
def icon(name: str, label: str = "") -> SafeString:
    """Draw one icon of the sprite. Without a label it is decoration, hidden from screen readers."""
    url = static("img/icons.svg")
    if label:
        return format_html('<svg class="icon" role="img" aria-label="{}"><use href="{}#{}"/></svg>', label, url, name)
    return format_html('<svg class="icon" aria-hidden="true"><use href="{}#{}"/></svg>', url, name)


@register.simple_tag
def state(row: Stateful) -> SafeString:
    """Draw the state of a job, attempt, round or node."""
    return state_word(row.state, row.State(row.state).label)  # type: ignore[attr-defined]


@register.simple_tag
def state_word(value: str, label: str = "") -> SafeString:
    """Draw a state that is known by its value alone, such as one in a history."""
    tone, name = LOOKS.get(value, ("calm", "dot"))
    return format_html(
        '<span class="state state-{}">{}<span>{}</span></span>', tone, icon(name), label or value.capitalize()
    )


@register.simple_tag
def ago(at: datetime | float | None, never: str = "never") -> SafeString:
    """Draw a time as "3 min ago", the exact one on hover. time.js keeps it true and puts it in the viewer's zone."""
    if at is None:
        return format_html('<span class="faint">{}</span>', never)
    if not isinstance(at, datetime):
        at = datetime.fromtimestamp(at, UTC)
    exact = at.astimezone(UTC)
    return format_html(
        '<time datetime="{}" title="{}" data-relative>{}</time>',
        exact.isoformat(timespec="milliseconds"),
        exact.strftime("%Y-%m-%d %H:%M:%S UTC"),
        relative((timezone.now() - at).total_seconds()),
    )


def relative(seconds: float) -> str:
    """Return "12 s ago" for a past time, "in 12 s" for one to come. time.js has the same words."""
    words = duration(abs(seconds))
    if abs(seconds) < 1:
        return "now"
    return f"in {words}" if seconds < 0 else f"{words} ago"


@register.filter
def duration(seconds: float | None) -> str:
    """Return a length of time in its largest useful unit: 340 ms, 4.2 s, 12 s, 3 min, 2.5 h, 4 d."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds / 60)} min"
    if seconds < 36_000:
        return f"{seconds / 3600:.1f} h".replace(".0 h", " h")
    return f"{int(seconds / 3600)} h" if seconds < 86_400 else f"{int(seconds / 86_400)} d"


@register.filter
def size(num_bytes: float | None) -> str:
    """Return a size in binary units: 512 B, 1.4 KiB, 31 GiB."""
    if num_bytes is None:
        return "–"
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1023.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.95 else f"{value:.1f} {units[0]}"


@register.filter
def metric(value: float | str | None) -> str:
    """Return a metric with four significant digits; NaN and infinities as what they are."""
    if value is None:
        return "–"
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number != 0 and not 1e-3 <= abs(number) < 1e5:
        digits, power = f"{number:.3e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{number:.4g}"


@register.filter
def count(value: int | None) -> str:
    """Return a whole number with commas between thousands, as sentences and charts write it."""
    return "–" if value is None else f"{value:,}"


@register.filter
def fingerprint(key: str) -> str:
    """Return what people compare of a node's public key."""
    return keys.fingerprint(key)


@register.filter
def short(digest: str) -> str:
    """Return the first characters of a digest, enough to compare by eye."""
    return digest[:12]


@register.filter
def percent_of(part: float, whole: float) -> int:
    """Return `part` of `whole` in whole per cent; 0 of nothing."""
    return min(100, round(100 * part / whole)) if whole else 0


@register.filter
def item(mapping: dict[str, Any], key: str) -> Any:
    """Look up a key that is not a name, such as train/loss."""
    return mapping.get(key)


@register.inclusion_tag("ui/nav_item.html", takes_context=True)
def nav_item(context: template.RequestContext, url: str, label: str, icon_name: str) -> dict[str, Any]:
    """Draw one entry of the sidebar; the one that leads to this page is marked."""
    here = context["request"].path
    return {"url": url, "label": label, "icon_name": icon_name, "current": here.startswith(url)}


@register.filter
def split_words(words: str) -> list[str]:
    """Return the words of a string, for a loop over a few names."""
    return words.split()

"""Quantities as people read them."""

from __future__ import annotations

import pytest

from webapp.core.templatetags.ui import ago, count, duration, metric, relative, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.34, "340 ms"),
        (2.0, "2 s"),
        (4.25, "4.2 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (5400, "1.5 h"),
        (86_399, "23 h"),
        (200_000, "2 d"),
    ],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_relative_looks_both_ways():
    assert relative(0.4) == "now"
    assert relative(90) == "1 min ago"
    assert relative(-90) == "in 1 min"


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (432 * 1024, "432 KiB"), (32 * 2**30, "32.0 GiB")],
)
def test_size(num_bytes, words):
    assert size(num_bytes) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (0.00012345, "1.234e-4"),
        (123456.0, "1.235e5"),
        ("NaN", "NaN"),
        ("-Infinity", "−∞"),
    ],
)
def test_metric(value, words):
    assert metric(value) == words


def test_count_separates_thousands():
    assert count(1_234_567) == "1,234,567"


def test_a_time_has_the_exact_one_on_hover():
    assert ago(1_000_000_000.5).startswith(
        '<time datetime="2001-09-09T01:46:40.500+00:00" title="2001-09-09 01:46:40 UTC" data-relative>'
    )
    assert "never" in ago(None)

"""A runner's output becomes log lines, whatever it prints."""

from __future__ import annotations

import tracemalloc

from trainer.agent.console import BURST_LINES, MAX_LINE, Console
from trainer.protocol import Logs


def test_lines_are_cut_where_they_end_not_where_they_arrive() -> None:
    console = Console()
    for piece in (b"one\ntw", b"o\nth", b"ree"):
        console.feed(piece)
    assert [line.text for line in console.take()[0]] == ["one", "two"]
    console.close()
    assert [line.text for line in console.take()[0]] == ["three"]


def test_levels_follow_python() -> None:
    console = Console()
    console.feed(
        b"epoch 1\nTraceback (most recent call last):\n  File 'a.py', line 1\nValueError: no\nepoch 2\n"
        b"/x/a.py:3: UserWarning: careful\n  warn()\nan error in words only\n"
    )
    levels = [line.level for line in console.take()[0]]
    assert levels == ["info", "error", "error", "error", "info", "warning", "info", "info"]


def test_ten_megabytes_in_one_line_cost_little_memory() -> None:
    console = Console()
    chunk = b"x" * 65_536
    tracemalloc.start()
    for _ in range(160):
        console.feed(chunk)
    console.feed(b"\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (line,), dropped = console.take()
    assert dropped == 0
    assert len(line.text) == MAX_LINE
    assert line.text.endswith(" ... [cut: this line has 10,485,760 bytes]")
    assert peak < 500_000


def test_a_flood_is_counted_and_the_rest_kept() -> None:
    console = Console()
    total = 0
    for _ in range(50):
        console.feed(b"y\n" * 20_000)
        total += 20_000
    lines, dropped = console.take()
    assert BURST_LINES <= len(lines) <= BURST_LINES + 200
    assert len(lines) + dropped == total
    Logs(attempt_id=1, source="node-1", lines=lines, dropped=dropped)


def test_bytes_that_are_no_text_do_no_harm() -> None:
    console = Console()
    console.feed(b"\xff\xfe\x00 caf\xc3\xa9\r\n")
    assert console.take()[0][0].text == "\ufffd\ufffd\x00 café"

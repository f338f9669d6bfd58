"""A runner's output, cut into log lines that fit the protocol, whatever the runner prints."""

from __future__ import annotations

import re
import time

from trainer.protocol import LogLevel, LogLine

MAX_LINE = 8192
LINES_PER_SECOND = 200
BURST_LINES = 400
# Bytes of an unfinished line that are kept; the rest is only counted. A character has at most 4 bytes.
KEPT_BYTES = 4 * MAX_LINE

_WARNING = re.compile(r"^(\S+:\d+: )?\w*Warning: ")
_TRACEBACK = "Traceback (most recent call last):"


class Console:
    """Takes raw output in pieces and gives log lines. Memory stays bounded: 10 MB in one line cost 32 KiB."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._line_bytes = 0
        self._in_traceback = False
        self._allowance = float(BURST_LINES)
        self._allowed_at = time.monotonic()
        self._lines: list[LogLine] = []
        self._dropped = 0

    @property
    def pending(self) -> bool:
        """Whether `take` would give something."""
        return bool(self._lines or self._dropped)

    def feed(self, data: bytes) -> None:
        """Take what the runner wrote, cut anywhere."""
        self._refill()
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._allowance < 1:
                # A flood: count its lines without looking at each.
                self._dropped += data.count(b"\n", start)
                start = data.rfind(b"\n") + 1
                self._line.clear()
                self._line_bytes = 0
                break
            self._extend(data[start:end])
            self._finish()
            start = end + 1
        self._extend(data[start:])

    def close(self) -> None:
        """The output ended: a last line without its newline counts."""
        if self._line_bytes:
            self._finish()

    def say(self, text: str) -> None:
        """Add a line of the agent's own about the runner."""
        self._lines.append(LogLine(time_ms=time.time_ns() // 1_000_000, level="error", text=text))

    def take(self) -> tuple[list[LogLine], int]:
        """Return the lines since the last call, and how many were left out because they came too fast."""
        lines, dropped = self._lines, self._dropped
        self._lines, self._dropped = [], 0
        return lines, dropped

    def _extend(self, piece: bytes) -> None:
        self._line_bytes += len(piece)
        self._line += piece[: max(0, KEPT_BYTES - len(self._line))]

    def _finish(self) -> None:
        text = self._line.decode(errors="replace").rstrip("\r")
        if len(text) > MAX_LINE or self._line_bytes > len(self._line):
            note = f" ... [cut: this line has {self._line_bytes:,} bytes]"
            text = text[: MAX_LINE - len(note)] + note
        self._line.clear()
        self._line_bytes = 0
        level = self._level(text)
        # A last line without its newline may go below zero.
        self._allowance -= 1
        self._lines.append(LogLine(time_ms=time.time_ns() // 1_000_000, level=level, text=text))

    def _level(self, text: str) -> LogLevel:
        """error for a traceback, from its heading to the line with the exception; warning for Python's warnings."""
        if text.startswith(_TRACEBACK):
            self._in_traceback = True
            return "error"
        if self._in_traceback:
            self._in_traceback = not text or text[0].isspace()
            return "error"
        return "warning" if _WARNING.match(text) else "info"

    def _refill(self) -> None:
        now = time.monotonic()
        self._allowance = min(BURST_LINES, self._allowance + (now - self._allowed_at) * LINES_PER_SECOND)
        self._allowed_at = now

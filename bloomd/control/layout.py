"""How text is laid out for a person: sections and tables that fit a width, words in the colour of what they mean.

Pure functions from values to lines; what the answers of the control socket say is told in `render`.
"""

from __future__ import annotations

import time
from textwrap import wrap

TYPE_CHECKING = False  # importing typing would cost as much as all of this
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from bloomd.control.answers import Json

_GREEN, _YELLOW, _RED, _DIM = "32", "33", "31", "2"
_COLOURS = {
    "ok": _GREEN, "running": _GREEN, "up": _GREEN, "completed": _GREEN, "online": _GREEN,
    "degraded": _YELLOW, "starting": _YELLOW, "waiting": _YELLOW, "backoff": _YELLOW, "stopping": _YELLOW,
    "stopped": _YELLOW, "unknown": _YELLOW, "not watched": _YELLOW, "paused": _YELLOW,
    "offline": _YELLOW, "expired": _YELLOW, "rescued": _YELLOW, "retried": _YELLOW, "reset": _YELLOW,
    "down": _RED, "failed": _RED, "dead": _RED,
    "disabled": _DIM, "not configured": _DIM,
}  # fmt: skip

# Wide enough for the longest heading, `workers` and `process`, and a gap.
_LABEL = 10
# With less room than this beside a row, its text is easier to read below.
_BESIDE = 24


class Look:
    """How it is to look: the width to fit, whether in colour, what time it is, and what to begin a status with."""

    def __init__(self, now: float, width: int = 100, colour: bool = False, stamp: str = "") -> None:
        self.now = now
        self.width = width
        self.colour = colour
        self.stamp = stamp

    def paint(self, word: str, meaning: str | None = None) -> str:
        """A word in the colour of what it means, if it means anything."""
        code = _COLOURS.get(meaning or word.strip())
        return f"\x1b[{code}m{word}\x1b[0m" if self.colour and code else word

    def ago(self, at: float) -> str:
        return f"{duration(self.now - at)} ago"


def printable(value: Json) -> Any:
    """A JSON value with everything that is not printable replaced in its strings."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else " " if c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value)
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return value


def duration(seconds: float) -> str:
    """Seconds for a person: one number and its unit."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds / 60)} min"
    return f"{int(seconds / 3600)} h" if seconds < 48 * 3600 else f"{int(seconds / 86400)} d"


def clock(at: float, now: float, form: str = "%H:%M") -> str:
    """A moment by the clock of the place; with its date when that is not today's."""
    when, today = time.localtime(at), time.localtime(now)
    return time.strftime(form if when[:3] == today[:3] else f"%Y-%m-%d {form}", when)


def cropped(lines: list[str], width: int, height: int) -> list[str]:
    """What of it fits a window; its last line says what does not."""
    if len(lines) <= height:
        return lines
    more = f"… {count(len(lines) - height + 1, 'more line')}: make the window larger, or use status without -w"
    return [*lines[: height - 1], more[:width]]


def section(text: str, look: Look, *, label: str = "", lead: str = "") -> Iterator[str]:
    """A heading and its text, wrapped beside it; without a label the text begins at the margin.

    The first `lead` in its first line is painted.
    """
    head, indent = (label.ljust(_LABEL), " " * _LABEL) if label else ("", "  ")
    lines = wrap(text, look.width, initial_indent=head, subsequent_indent=indent)
    for first in lines[:1]:
        yield head + first.removeprefix(head).replace(lead, look.paint(lead), 1)
    yield from lines[1:]


def table(rows: list[list[str]], look: Look, *, indent: str) -> Iterator[str]:
    """Aligned columns; the last one is wrapped in what room is left, or below when that is little."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        head = indent + "".join(f"{look.paint(cell.ljust(width))}  " for cell, width in zip(cells, widths, strict=True))
        used = len(indent) + sum(widths) + 2 * len(widths)
        if look.width - used < _BESIDE:
            yield head.rstrip()
            below = indent + "    "
            yield from wrap(last, look.width, initial_indent=below, subsequent_indent=below)
            continue
        first, *rest = wrap(last, look.width - used) or [""]
        yield (head + first).rstrip()
        for line in rest:
            yield " " * used + line


def count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"

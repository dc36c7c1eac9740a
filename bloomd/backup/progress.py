"""How far it is: one line that is written over on a terminal, and a line for each part elsewhere."""

import sys
import time
from collections.abc import Callable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SECONDS_BETWEEN = 0.2


def human(size: float) -> str:
    """A size for a person."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} B"


class Quiet:
    """Says nothing: nobody looks."""

    def __init__(self, part: str, total: int | None = None) -> None:
        """`total`: how many bytes there will be, if that is known."""
        self._part, self._total = part, total
        self._done = 0

    def passed(self, size: int) -> None:
        """So many bytes more are done."""
        self._done += size

    def ended(self) -> None:
        """The part is done."""


class Progress(Quiet):
    """Of one part; on the standard error."""

    def __init__(self, part: str, total: int | None = None) -> None:
        super().__init__(part, total)
        self._began = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def passed(self, size: int) -> None:
        super().passed(size)
        now = time.monotonic()
        if self._terminal and now - self._shown >= _SECONDS_BETWEEN:
            self._shown = now
            print(f"\r{self._part}: {self._text(now)}\x1b[K", end="", file=sys.stderr, flush=True)

    def ended(self) -> None:
        start, end = ("\r", "\x1b[K") if self._terminal else ("", "")
        print(f"{start}{self._part}: {human(self._done)}{end}", file=sys.stderr, flush=True)

    def _text(self, now: float) -> str:
        rate = self._done / max(now - self._began, 0.001)
        text = f"{human(self._done)}, {human(rate)}/s"
        if self._total and rate:
            text += f", {max(0, self._total - self._done) / rate:.0f} s left"
        return text


Follow = Callable[[str, int | None], Quiet]
"""What follows each part: `Progress`, or `Quiet`."""

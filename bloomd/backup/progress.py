"""How far it is: one line that is written over on a terminal, and a line for each part elsewhere."""

import sys
import time

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SECONDS_BETWEEN = 0.2


def human(size: float) -> str:
    """A size for a person."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} B"


class Progress:
    """Of one part; on the standard error."""

    def __init__(self, part: str, *, total: int | None = None) -> None:
        self._part, self._total = part, total
        self._done = 0
        self._began = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def passed(self, size: int) -> None:
        """So many bytes more are done."""
        self._done += size
        now = time.monotonic()
        if self._terminal and now - self._shown >= _SECONDS_BETWEEN:
            self._shown = now
            print(f"\r{self._part}: {self._text(now)}\x1b[K", end="", file=sys.stderr, flush=True)

    def ended(self) -> None:
        """The part is done."""
        start, end = ("\r", "\x1b[K") if self._terminal else ("", "")
        print(f"{start}{self._part}: {human(self._done)}{end}", file=sys.stderr, flush=True)

    def _text(self, now: float) -> str:
        rate = self._done / max(now - self._began, 0.001)
        text = f"{human(self._done)}, {human(rate)}/s"
        if self._total and rate:
            text += f", {max(0, self._total - self._done) / rate:.0f} s left"
        return text

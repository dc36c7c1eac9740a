"""What `bloomd-ctl` writes to: a terminal with its size and colours, or a pipe."""

from __future__ import annotations

import os
import shutil
import sys
import time

from bloomd.control.layout import Look

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from collections.abc import Iterable

# Longer lines are hard to read, however wide the terminal.
MAX_WIDTH = 100


def look(stamp: str = "") -> Look:
    """How text is to look there."""
    colour = is_terminal() and not os.environ.get("NO_COLOR")
    return Look(time.time(), min(size().columns, MAX_WIDTH), colour, stamp)


def is_terminal() -> bool:
    """Whether it understands escape sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def size() -> os.terminal_size:
    return shutil.get_terminal_size((MAX_WIDTH, 24))


def text(lines: Iterable[str]) -> str:
    """The lines as it can show them: some locales have few letters."""
    return "\n".join(lines).encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)


def tell(sentence: str) -> None:
    """Say something that is no part of the answer."""
    print(f"bloomd-ctl: {sentence}", file=sys.stderr, flush=True)

"""Logs: key=value for people, JSON for machines; info to stdout, warnings and errors to stderr; secrets never.

Two streams, because OpenRC's `output_log` and `error_log` make the two files of the deployment guide from them.
"""

import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

import structlog

from bloomd.redaction import MASK, Redaction, cut

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# What is kept in memory: of what goes on, and apart from it of trouble, which thousands of requests must not drive out.
USUAL_LINES, USUAL_BYTES = 1500, 768 * 1024
TROUBLE_LINES, TROUBLE_BYTES = 500, 256 * 1024
RECENT_LINES = USUAL_LINES + TROUBLE_LINES
# A longer line, such as the traceback of an endless recursion, would drive all others out.
RECENT_LINE_LENGTH = 16 * 1024

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# PostgreSQL quotes the row or the JSON that it refuses, which may be a prompt or a result.
_REFUSED = re.compile(
    r"(Failing row contains |JSON data, line \d+: ).*?(?=\n\n(?:The above|During handling)|\Z)", re.DOTALL
)


class Logs:
    """How this process logs; what it redacts and from which level on can change while it runs."""

    def __init__(self, *, json: bool, level: str = "info") -> None:
        self._json = json
        self.redaction = Redaction()
        self.recent = Recent()
        self.level = level
        self.set_level(level)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=_COMMON,
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_renderers(json, sys.stderr),
                    self._finish,
                ],
            )
        )
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)  # what the libraries say

    def set_level(self, level: str) -> None:
        """Write from this level on."""
        self.level = level
        structlog.configure(
            processors=[*_COMMON, *_renderers(self._json, sys.stdout), self._finish],
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
            logger_factory=_TwoStreams,
            cache_logger_on_first_use=False,
        )

    def redact(self, secrets: Iterable[str]) -> None:
        """Never write any of these from now on."""
        self.redaction.add(secrets)

    def _finish(self, logger: Any, method: str, line: Any) -> Any:
        """The last step: in a finished line a secret is found wherever it came from."""
        line = self.redaction(line)
        self.recent.add(_COLOUR.sub("", line), trouble=method not in ("debug", "info"))
        return line


class Recent:
    """The last lines that were written, numbered from 1 on. Any thread may add one."""

    def __init__(self) -> None:
        self.last = 0
        """The number of the latest."""
        self._usual = _Ring(USUAL_LINES, USUAL_BYTES)
        self._trouble = _Ring(TROUBLE_LINES, TROUBLE_BYTES)
        self._lock = threading.RLock()  # whoever holds it may be interrupted by a finalizer that logs

    def __repr__(self) -> str:
        return f"<Recent {len(self._usual.lines)} and {len(self._trouble.lines)} of {self.last} lines>"

    def add(self, line: str, *, trouble: bool = False) -> None:
        with self._lock:
            self.last += 1
            (self._trouble if trouble else self._usual).add(self.last, cut(line, RECENT_LINE_LENGTH))

    def after(self, number: int) -> list[tuple[int, str]]:
        """The lines with a higher number that are still there, in their order."""
        with self._lock:
            lines = [*self._usual.lines, *self._trouble.lines]
        return sorted(line for line in lines if line[0] > number)


class _Ring:
    """Lines with their numbers, up to so many lines and bytes."""

    def __init__(self, most_lines: int, most_bytes: int) -> None:
        self.lines: deque[tuple[int, str]] = deque()
        self._most_lines = most_lines
        self._most_bytes = most_bytes
        self._bytes = 0

    def add(self, number: int, line: str) -> None:
        self.lines.append((number, line))
        self._bytes += _size(line)
        while len(self.lines) > self._most_lines or self._bytes > self._most_bytes:
            self._bytes -= _size(self.lines.popleft()[1])


def _size(line: str) -> int:
    return len(line.encode(errors="replace"))


class _TwoStreams:
    """A logger that writes a finished line to the stream of its level."""

    def __init__(self, *args: object) -> None:
        """structlog passes the arguments of `get_logger`: our module names, which the lines do not need."""

    def debug(self, line: str) -> None:
        _write(sys.stdout, line)

    info = debug

    def warning(self, line: str) -> None:
        _write(sys.stderr, line)

    error = critical = exception = warning


def is_json(format: str, production: bool) -> bool:
    """Whether to write JSON: when asked to, or in production when it is left to us."""
    return format == "json" or (format == "auto" and production)


def _write(stream: TextIO, line: str) -> None:
    with suppress(OSError, ValueError):  # a full disk or a closed pipe costs lines, not the daemon
        stream.write(line + "\n")
        stream.flush()


def _without_refused(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    if "exception" in event:
        event["exception"] = _REFUSED.sub(rf"\1{MASK}", event["exception"])
    return event


_COMMON: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    _without_refused,
]


def _renderers(json: bool, stream: TextIO) -> list[Any]:
    if json:
        return [structlog.processors.JSONRenderer()]
    if stream.isatty():
        return [structlog.dev.ConsoleRenderer(pad_event_to=28, timestamp_key="timestamp")]
    return [structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)]
